"""What runs beside a server, or around it, as code. Nothing of the product imports it.

===========  ==========================================
``grafana``  dashboards, written as JSON for Grafana 11
``ray``      servers under Ray Serve
===========  ==========================================
"""
