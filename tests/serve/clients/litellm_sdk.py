"""litellm's SDK with its defaults; prints what it got as JSON. Runs in an environment that has it."""

import json
import sys
from typing import Any

import litellm


def main(url: str) -> None:
    found = []
    asked: list[dict[str, Any]] = [{}, {"n": 2, "size": "1024x1024"}, {"quality": "auto"}]
    for model in ("gpt-image-1", "dall-e-2", "dall-e-3"):
        for more in asked:
            if model.startswith("dall-e") and "quality" in more:
                more = {"quality": "standard"}
            answer = litellm.image_generation("a digit", f"openai/{model}", api_base=url, api_key="none", **more)
            found.append([model, len(answer.data), answer.data[0].url is not None, answer.usage.total_tokens])
    ours = {"steps": 5, "scope": "campaign"}
    answer = litellm.image_generation("a digit", "openai/digits", api_base=url, api_key="none", extra_body=ours)
    found.append(["digits", len(answer.data), answer.data[0].url is not None, answer.usage.total_tokens])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
