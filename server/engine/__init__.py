"""Everything that imports vLLM: launch, engine client, KV connector, residency."""
