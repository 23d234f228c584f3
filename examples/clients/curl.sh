#!/bin/sh
# Needs: curl.
curl -si http://127.0.0.1:8000/v1/chat/completions \
    -H 'Content-Type: application/json' \
    -H 'X-Policy-Patch: pirate' \
    -d '{"model": "smollm2", "temperature": 0,
         "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
