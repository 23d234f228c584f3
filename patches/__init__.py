"""The patch artifact and its life: format, manifest, fingerprint, compile, compose, PEFT.

Nothing here knows vLLM or the server. Importing the package imports neither torch nor transformers.

====================  =========================================================
``format``            the patch file, its bytes; the specification
``content``           what a file holds, checked without a tensor library
``tensor_checks``     what its tensors have to be, by its manifest
``container``         the safetensors container, read with bounds on everything
``manifest``          what a patch says about itself
``kinds``             the part of it that depends on the kind of patch
``base_model``        the part of it that says which model the patch is for
``label``             the part of it that its maker writes
``fields``            typed reading of a JSON object; collects every mistake
``names``             the grammar of names, versions and digests
``digest``            the digest of a patch: what it is
``canonical``         one value, one text of JSON
``fingerprint``       what a base model must have for a prefix to mean the same
``weights_digest``    the part of it that is the weights
``checkpoint``        the tensors of a model's safetensors files
``tokenizer_digest``  the part of it that is the tokenizer
``model``             a base model, loaded with transformers
``model_files``       where its files are, and whether they can be read
``rendering``         from policy text to token ids
``compile``           from text, token ids or embeddings to a patch
``float64``           computing in float64 with narrower weights
``compose``           several patches as one, their K/V computed anew
``convert``           the same patch for a model that runs in another dtype
``join``              prefixes side by side, their keys moved
``peft_import``       from a PEFT adapter to a patch
``peft_export``       from a patch to a PEFT adapter
``sampling``          how answers are drawn from a model
``lines``             files of lines, whole or appended to
``durable``           small files that survive a crash
``reading``           reading a file that someone else put there
``text``              text of people: its encoding, its lines, its rows of JSON
``server_address``    where a server answers, as people write it
``yaml_text``         their YAML: data only, no key twice
``headers``           the names of our HTTP headers
``argument_values``   values of command-line arguments
``terminal``          text on its way to people
``command_parser``    help that fits a terminal, for all commands and benchmarks
``errors``            what can go wrong, as a tree
``pairs``             preference pairs
``train``             the trainer
``steer``             steering vectors in a transformers model, and their making
``deltas``            from checkpoints to weight patches
``critical``          which weights a model's safety hangs on
``tune``              instruction tuning of whole models, critical weights held
``recipes``           from a file of YAML to finished patches
``evaluate``          what a patch does, measured
``signing``           keys, signatures, revoked patches
====================  =========================================================
"""
