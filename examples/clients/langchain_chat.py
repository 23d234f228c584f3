"""The patch in the headers of one chat model. Needs: pip install langchain-openai."""

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    model="smollm2",
    base_url="http://127.0.0.1:8000/v1",
    api_key="none",
    temperature=0,
    default_headers={"X-Policy-Patch": "pirate"},
    include_response_headers=True,
)
answer = chat.invoke("What is the capital of France?")
print(answer.response_metadata["headers"]["x-policy-patch"], answer.content)
