"""The patch in a header, through LiteLLM. Needs: pip install litellm.

Without LITELLM_LOCAL_MODEL_COST_MAP=True in the environment, LiteLLM asks the network for prices first.
"""

import litellm

answer = litellm.completion(
    model="openai/smollm2",
    api_base="http://127.0.0.1:8000/v1",
    api_key="none",
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    temperature=0,
    extra_headers={"X-Policy-Patch": "pirate"},
)
headers = answer._hidden_params["additional_headers"]
print(headers["llm_provider-x-policy-patch"], answer.choices[0].message.content)
