"""Continue a prompt, and print the text as it is generated.

python examples/generate.py [MODEL] [PROMPT]
"""

import sys

import llama_ext

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
prompt = sys.argv[2] if len(sys.argv) > 2 else "The three most important inventions are"

llm = llama_ext.load(model, progress=True)
stream = llm.stream(prompt, max_new_tokens=48, temperature=0.7, top_p=0.95, seed=1, stop="\n\n")
print(prompt, end="")
for piece in stream:
    print(piece, end="", flush=True)
print(f"\n\n[{stream.result.finish_reason}; {stream.result.timings}]")
