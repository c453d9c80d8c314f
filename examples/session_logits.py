"""The small decoding API: step by step, with the logits in hand.

Continues a text greedily, shows what the model hesitated between, then goes back and takes another way.

python examples/session_logits.py [MODEL]
"""

import sys

import numpy as np

import llama_ext

llm = llama_ext.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2", progress=True)
session = llm.session()

text = "My favourite colour is"
logits = session.prefill(llm.tokenizer.encode(text))  # float32 [vocab]: what follows the last token
start = session.position

for choice in (1, 2):  # the best first word, then the second best
    session.rollback(session.position - start)
    token = int(np.argsort(-logits)[choice - 1])
    ids: list[int] = []
    while token not in llm.tokenizer.end_ids and len(ids) < 12:
        ids.append(token)
        token = int(np.argmax(session.step(token)))
    print(f"{choice}. {text}{llm.tokenizer.decode(ids)}")
