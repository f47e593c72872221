// Vercel's AI SDK with both of its providers; prints what it got as JSON.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { experimental_generateImage, generateImage } from 'ai';

const settings = { baseURL: process.argv[2], apiKey: 'none' };
const openai = createOpenAI(settings);
const compatible = createOpenAICompatible({ name: 'ddm', ...settings });
const providers = { openai: (name) => openai.image(name), compatible: (name) => compatible.imageModel(name) };
const found = [];

for (const [provider, model] of Object.entries(providers)) {
  for (const name of ['digits', 'gpt-image-1', 'dall-e-2', 'dall-e-3']) {
    for (const more of [{}, { n: 2, size: '1024x1024' }]) {
      const answer = await generateImage({ model: model(name), prompt: 'a digit', maxRetries: 0, ...more });
      const types = answer.images.map((image) => image.mediaType);
      found.push({ provider, name, types, warnings: answer.warnings });
    }
  }
}
// Fields that OpenAI doesn't have.
for (const [provider, scope] of [['ddm', 'compatible'], ['openai', 'openai']]) {
  const model = provider === 'ddm' ? providers.compatible : providers.openai;
  const providerOptions = { [provider]: { steps: 5, scope, quality: 'auto' } };
  await experimental_generateImage({ model: model('digits'), prompt: 'a digit', providerOptions });
}
console.log(JSON.stringify(found));
