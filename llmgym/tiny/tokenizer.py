"""The alphabet of the embedded model: one character, one token; a tag or mark is one token too.

| ids       | what                                                                                     |
|-----------|------------------------------------------------------------------------------------------|
| 0 to 3    | `<pad>` `<bos>` `<eos>` `<unk>`                                                          |
| 4 to 6    | role marks `<|system|>` `<|user|>` `<|assistant|>`                                       |
| 7 to 9    | fill-in-the-middle marks `<|fim_prefix|>` `<|fim_middle|>` `<|fim_suffix|>`              |
| 10 to 15  | tags `<think>` `</think>` `<answer>` `</answer>` `<tool>` `</tool>`                      |
| 16 to 111 | newline and the 95 printable ASCII characters, in the order of their code points         |
| 112 to 147| the second script: 10 Devanagari digits, 26 Devanagari consonants (क to य)               |

The first script is `0-9a-z`: 36 characters, as many as the second. Capital letters are there so that
an ordinary prompt can be encoded; they belong to neither script.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
ROLE_MARKS = ("<|system|>", "<|user|>", "<|assistant|>")
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<tool>", "</tool>")
SPECIAL = (PAD, BOS, EOS, UNK, *ROLE_MARKS, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX)

ASCII = "\n" + "".join(chr(i) for i in range(32, 127))
FIRST_SCRIPT = string.digits + string.ascii_lowercase
# U+0929 is left out: it is U+0928 with a dot and normalisation would take it apart.
SECOND_SCRIPT = "".join(chr(i) for i in (*range(0x966, 0x970), *range(0x915, 0x930)) if i != 0x929)

_TO_SECOND = str.maketrans(FIRST_SCRIPT, SECOND_SCRIPT)
_TO_FIRST = str.maketrans(SECOND_SCRIPT, FIRST_SCRIPT)

# No newlines and no trimming: what a message says is encoded character by character.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role must be system, user or assistant, got ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def to_second_script(text: str) -> str:
    """Each of `0-9a-z` becomes its partner in the second script; all else stays. "7+8" -> "७+८"."""
    return text.translate(_TO_SECOND)


def to_first_script(text: str) -> str:
    """The inverse of `to_second_script`."""
    return text.translate(_TO_FIRST)


def vocabulary() -> dict[str, int]:
    """Token -> id, 148 of them, in the order of the table above."""
    return {token: i for i, token in enumerate((*SPECIAL, *TAGS, *ASCII, *SECOND_SCRIPT))}


def _backend() -> Tokenizer:
    backend = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()  # without it decoding puts a space between two characters
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    # Tags are text: a scorer must see them after decode(skip_special_tokens=True).
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in TAGS])
    ids = vocabulary()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return backend


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the embedded model; `encode` puts <bos> in front and nothing at the end."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=[*ROLE_MARKS, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # The name that every release of transformers knows; 5.x alone writes "TokenizersBackend".
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
