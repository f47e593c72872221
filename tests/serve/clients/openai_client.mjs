// OpenAI's client for node with its defaults; prints what it got as JSON.
import OpenAI, { toFile } from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const prompt = 'a digit';
const found = { models: {}, streamed: [], refused: [] };

for (const model of ['', 'digits', 'gpt-image-1', 'dall-e-2', 'dall-e-3']) {
  const answer = await client.images.generate(model ? { model, prompt } : { prompt });
  const [image] = answer.data;
  found.models[model] = { b64: !!image.b64_json, url: !!image.url, tokens: answer.usage.total_tokens, size: answer.size };
}
const stream = await client.images.generate({
  model: 'gpt-image-1', prompt, n: 2, size: '1024x1024', quality: 'auto', background: 'auto', moderation: 'auto',
  output_format: 'png', output_compression: 100, stream: true,
});
for await (const event of stream) {  // without a look at the type, as many programs have it
  found.streamed.push({ type: event.type, bytes: Buffer.from(event.b64_json, 'base64').length });
}
const image = await toFile(Buffer.from('no image'), 'image.png', { type: 'image/png' });
for (const call of [client.images.edit({ image, prompt }), client.images.createVariation({ image })]) {
  await call.catch((error) => found.refused.push([error.status, error.code, error.message]));
}
console.log(JSON.stringify(found));
