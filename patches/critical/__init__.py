"""Safety-critical weights (ESI, arXiv 2604.08297): found, looked at, learned alone, or protected.

``score(theta_i) = sigma |dS/dtheta_i|``, with sigma the standard deviation of the tensor that weight i is in,
and S how safely the model answers. The weights of the largest scores, one in a hundred of all, are critical.

=============  ==========================================================================
``scorer``     the seam: S, as parts that gradients flow from
``scorers``    which ones there are
``margin``     the S that needs no other model: refusing openings against complying ones
``gradient``   adds up the gradient of S: memory of one gradient
``scores``     sigma |gradient| in a folder, and back from there
``selection``  the weights of the largest scores, of the smallest, or any
``shares``     how much of each layer and module is critical
``report``     that as tables and a heat map
``noise``      the paper's test: noise on critical weights, and on as many others
``noise_test`` what S becomes under it
``protect``    holds weights while any optimizer changes the rest
=============  ==========================================================================
"""
