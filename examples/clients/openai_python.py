"""The patch in a request's header. Needs: pip install openai."""

import openai

client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
messages = [{"role": "user", "content": "What is the capital of France?"}]
raw = client.chat.completions.with_raw_response.create(
    model="smollm2", messages=messages, temperature=0, extra_headers={"X-Policy-Patch": "pirate"}
)
print(raw.headers["X-Policy-Patch"], raw.parse().choices[0].message.content)
