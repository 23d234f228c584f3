"""The Grafana dashboards; ``python -m deploy.grafana`` writes them to ``dashboards/``, a file each.

===================  ==========================================================
``overview``         everything at a glance
``patch``            one patch: its golden signals, its canary, its memory
``fleet``            many servers: who serves what, who is out of step
``rollout``          one canary, for the person who decides about it
``boards``           the four by name
``frame``            what all dashboards have: variables, links, annotations
``panels``           the kinds of panels, with their common options
``queries``          PromQL that several dashboards use
===================  ==========================================================
"""
