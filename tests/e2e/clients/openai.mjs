// Speaks to a server with OpenAI's SDK for Node and prints what it saw as one JSON object.
// Standard input says what to ask: { baseURL, patch, alias, chat, tool, schema }, the last three being request bodies.
import { readFileSync } from "node:fs";
import OpenAI, { NotFoundError } from "openai";

const { baseURL, patch, alias, chat, tool, schema } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const patched = { headers: { "X-Policy-Patch": patch } };

async function plain(body, options) {
  const { data, response } = await client.chat.completions.create(body, options).withResponse();
  const { content, tool_calls } = data.choices[0].message;
  const tools = tool_calls?.map((call) => call.function);
  return { headers: Object.fromEntries(response.headers), text: content, tools };
}

async function streamed(body, options) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const { data, response } = await client.chat.completions.create(request, options).withResponse();
  let text = "";
  let usage = null;
  for await (const chunk of data) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { headers: Object.fromEntries(response.headers), text, usage };
}

async function responses() {
  const { model, messages: input, max_tokens: max_output_tokens, temperature } = chat;
  const request = client.responses.create({ model, input, max_output_tokens, temperature }, patched);
  const { data, response } = await request.withResponse();
  return { headers: Object.fromEntries(response.headers), text: data.output_text };
}

async function unknown() {
  try {
    await client.chat.completions.create(chat, { headers: { "X-Policy-Patch": `${patch}-unknown` } });
    return null;
  } catch (error) {
    return { isNotFound: error instanceof NotFoundError, status: error.status, param: error.param };
  }
}

console.log(
  JSON.stringify({
    base: await plain(chat),
    header: await plain(chat, patched),
    headerStream: await streamed(chat, patched),
    alias: await plain({ ...chat, model: alias }),
    aliasStream: await streamed({ ...chat, model: alias }),
    tool: await plain(tool, patched),
    schema: await plain(schema, patched),
    responses: await responses(),
    unknown: await unknown(),
  }),
);
