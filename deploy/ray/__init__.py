"""policypatch under Ray Serve, whose environment has neither vLLM nor this package.

===================  ==========================================================
``policypatch_ray``  one server process for each replica, and what passes it on
``guard``            lets no server outlive its replica
===================  ==========================================================
"""
