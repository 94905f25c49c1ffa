"""The pair's text: documents of three tasks from the standard library, split, and tokenized."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from uara.errors import UserError

TextTask = Literal["code", "summarise", "chat"]
TEXT_TASKS: tuple[TextTask, ...] = get_args(TextTask)

PAD, END, ANSWER = "<|pad|>", "<|end|>", "<|answer|>"
SPECIAL_TOKENS = (PAD, END, ANSWER, *(f"<|{task}|>" for task in TEXT_TASKS))

HELD_OUT_PER_THOUSAND = 80
_CHUNK_CHARACTERS = 1100
_MIN_DOC_CHARACTERS = 40
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "site-packages", "pydoc_data", "encodings", "_bundled"}
)


@dataclass(frozen=True)
class Document:
    """Hold one text of one task, as a prompt and what follows it.

    Attributes:
        task: Which of the text tasks this is.
        unit: What is held out as a whole: a source file (with all its docstrings) or a topic.
        prompt: The text up to where an answer begins, special tokens included.
        answer: The rest, without the closing special token.
    """

    task: TextTask
    unit: str
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """Return the whole document, closed by the end token."""
        return f"{self.prompt}{self.answer}{END}"


@dataclass(frozen=True)
class Corpus:
    """Hold the documents of both sides of the split and the hash of all their text."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    sha256: str


def is_held_out(unit: str) -> bool:
    """Tell whether a unit is kept from training: a hash of its name, the same on every machine."""
    digest = hashlib.sha256(unit.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_THOUSAND


def build_corpus(library: Path | None = None) -> Corpus:
    """Read the standard library and split its documents by unit.

    Args:
        library: Folder of Python sources; the running interpreter's own library if None.

    Returns:
        The corpus, in an order that depends on the file names alone.

    Raises:
        UserError: If the folder holds no Python source to learn from.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if library is None else library
    documents = [doc for path in _source_files(root) for doc in _file_documents(root, path)]
    topics = root / "pydoc_data" / "topics.py"
    if topics.is_file():
        documents += _topic_documents(topics.read_text(encoding="utf-8"))
    if not documents:
        raise UserError(
            f"no Python source under '{root}'; give a folder of .py files, or none to use the "
            "standard library of this interpreter"
        )
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.text.encode())
    return Corpus(
        train=tuple(doc for doc in documents if not is_held_out(doc.unit)),
        held_out=tuple(doc for doc in documents if is_held_out(doc.unit)),
        sha256=digest.hexdigest(),
    )


def train_tokenizer(documents: tuple[Document, ...], vocab_size: int) -> Tokenizer:
    """Train a byte-level byte-pair tokenizer; every byte and special token is in its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{doc.prompt}{doc.answer}" for doc in documents), trainer)
    return tokenizer


def _source_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        generated = path.name.startswith("_sysconfigdata")
        if not generated and _SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]):
            yield path


def _file_documents(root: Path, path: Path) -> Iterator[Document]:
    """Yield every document of one source file; a file that does not parse gives none."""
    name = path.relative_to(root).as_posix()
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):
        return
    for chunk in _chunks(source):
        head, body = _split_code(chunk)
        yield Document("code", name, f"<|code|># {name}\n{head}", body)
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    doc = ast.get_docstring(tree)
    if doc and len(doc) >= _MIN_DOC_CHARACTERS:
        yield _question(name, f"What is the module {module} for?", _shorten(doc))
    yield from _definition_documents(tree, source, name, module)


def _definition_documents(node: ast.AST, source: str, unit: str, scope: str) -> Iterator[Document]:
    """Yield a summary of, and an answer about, each documented function and class."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{scope}.{child.name}"
        doc = ast.get_docstring(child)
        if doc and len(doc) >= _MIN_DOC_CHARACTERS:
            kind = "class" if isinstance(child, ast.ClassDef) else "function"
            yield _question(unit, f"What does the {kind} {name} do?", _shorten(doc))
            if kind == "function":
                piece = _without_docstring(child, source)
                if piece:
                    prompt = f"<|summarise|>{piece}\n{ANSWER}"
                    yield Document("summarise", unit, prompt, _shorten(doc))
        yield from _definition_documents(child, source, unit, name)


def _without_docstring(
    function: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, source: str
) -> str:
    """Return a function's source without its docstring, cut short; empty if nothing remains."""
    first = function.body[0]
    if len(function.body) < 2 or first.end_lineno is None or function.end_lineno is None:
        return ""
    lines = source.splitlines()
    head = lines[function.lineno - 1 : first.lineno - 1]
    body = lines[first.end_lineno : function.end_lineno]
    indent = function.col_offset
    kept, length = [], 0
    for line in (text[indent:] for text in head + body):
        length += len(line) + 1
        if length > 360:
            break
        kept.append(line)
    return "\n".join(kept)


def _topic_documents(source: str) -> Iterator[Document]:
    """Yield questions on the language reference's topics, a long topic in several parts."""
    assignment = next(node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(assignment.value)
    for topic in sorted(topics):
        for part, chunk in enumerate(_chunks(topics[topic]), start=1):
            question = f"Explain the topic {topic}, part {part}."
            yield _question(f"topic:{topic}", question, chunk)


def _question(unit: str, question: str, answer: str) -> Document:
    return Document("chat", unit, f"<|chat|>{question}\n{ANSWER}", answer)


def _chunks(text: str) -> Iterator[str]:
    """Cut a text at line ends into pieces of about `_CHUNK_CHARACTERS`."""
    piece, length = [], 0
    for line in text.splitlines():
        piece.append(line)
        length += len(line) + 1
        if length >= _CHUNK_CHARACTERS:
            yield "\n".join(piece)
            piece, length = [], 0
    if length >= _MIN_DOC_CHARACTERS:
        yield "\n".join(piece)


def _split_code(chunk: str) -> tuple[str, str]:
    """Cut a piece of source where a third of it is read, at a line end."""
    cut = chunk.find("\n", len(chunk) // 3) + 1
    return (chunk[:cut], chunk[cut:]) if cut else (chunk, "")


def _shorten(doc: str) -> str:
    return next(_chunks(doc), doc)


def corpus_facts(corpus: Corpus) -> dict[str, object]:
    """Return the counts that a card quotes: documents and characters per task and side."""
    facts: dict[str, object] = {"sha256": corpus.sha256}
    for side, documents in (("train", corpus.train), ("held_out", corpus.held_out)):
        facts[side] = {
            task: {
                "documents": sum(doc.task == task for doc in documents),
                "characters": sum(len(doc.text) for doc in documents if doc.task == task),
            }
            for task in TEXT_TASKS
        }
    return facts
