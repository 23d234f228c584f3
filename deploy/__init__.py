"""What runs beside a server, as code: Grafana dashboards. Nothing of the product imports it.

===========  ==========================================
``grafana``  dashboards, written as JSON for Grafana 11
===========  ==========================================
"""
