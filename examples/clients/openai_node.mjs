// The patch in a request's header. Needs: npm install openai.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "none" });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const { data, response } = await client.chat.completions
  .create({ model: "smollm2", messages, temperature: 0 }, { headers: { "X-Policy-Patch": "pirate" } })
  .withResponse();
console.log(response.headers.get("X-Policy-Patch"), data.choices[0].message.content);
