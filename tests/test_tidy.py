"""The limits of STYLE.md, held by a test.

Looks at the files that git tracks or would track. Every check is a function from a file's text to
findings, and has a test of its own below that shows it finding something.
"""

from __future__ import annotations

import ast
import re
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINE_COLUMNS_MAX = 100
FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70
BLOB_BYTES_MAX = 512 * 1024

# Not ours, or not written by hand.
EXEMPT = re.compile(
    r"^LICENSE$|^native/third_party/.*\.h$|_pb2(_grpc)?\.pyi?$|^kvstore/_native\.pyi$"
)
CPP_SUFFIXES = {".cpp", ".hpp", ".h"}
CODE_SUFFIXES = CPP_SUFFIXES | {".py", ".pyi", ".cmake", ".sh"}

# Pattern and reason; each is written so that it does not match itself.
FORBIDDEN = [
    (re.compile(r"\bTO[D]O\b|\bFIX[M]E\b|\bX[X]X\b"), "unfinished work is not committed"),
    (re.compile(r"(?<![\w.~-])/(?:wor[k]|roo[t]|hom[e])/\w"), "a path of one machine"),
    (re.compile(r"pip install kvstor[e](?![\w-])"), "on PyPI that name is another project's"),
]
FORBIDDEN_CPP = [
    (re.compile(r"\batomic_(?:thread|signal)_fenc[e]\b"), "order with acquire and release instead"),
    (re.compile(r"\b(?:strcp[y]|strca[t]|sprint[f]|get[s])\("), "writes without a bound"),
    (re.compile(r"#include <iostrea[m]>"), "has static constructors; use cstdio"),
    (re.compile(r"#define private publi[c]"), "test what is public"),
]


@dataclass(frozen=True)
class Source:
    """A file of the project: its path relative to the root, and its text."""

    path: str
    text: str

    @property
    def suffix(self) -> str:
        return Path(self.path).suffix


# A finding is a line number and what is wrong there.
Check = Callable[[Source], Iterator[tuple[int, str]]]


def numbered(source: Source) -> Iterator[tuple[int, str]]:
    return enumerate(source.text.split("\n"), start=1)


def long_lines(source: Source) -> Iterator[tuple[int, str]]:
    for number, line in numbered(source):
        # A table row of markdown and an address cannot be broken.
        if source.suffix == ".md" and (line.startswith("|") or "://" in line):
            continue
        if source.suffix in CODE_SUFFIXES | {".md", ".toml"} and len(line) > LINE_COLUMNS_MAX:
            yield number, f"{len(line)} columns"


def long_file(source: Source) -> Iterator[tuple[int, str]]:
    lines = source.text.count("\n")
    if source.suffix in CODE_SUFFIXES and lines > FILE_LINES_MAX:
        yield 1, f"{lines} lines"


def white_space(source: Source) -> Iterator[tuple[int, str]]:
    makefile = Path(source.path).name == "Makefile"
    for number, line in numbered(source):
        if line != line.rstrip():
            yield number, "white space at the end"
        if "\t" in line.removeprefix("\t" if makefile else ""):
            yield number, "tab"
    if source.text and (not source.text.endswith("\n") or source.text.endswith("\n\n")):
        yield source.text.count("\n"), "one line feed ends a file"


def control_characters(source: Source) -> Iterator[tuple[int, str]]:
    for number, line in numbered(source):
        for character in line:
            invisible = unicodedata.category(character) in ("Cc", "Cf", "Co", "Zl", "Zp")
            if (invisible and character != "\t") or character == "\u00a0":
                yield number, f"character U+{ord(character):04X}"


def forbidden_words(source: Source) -> Iterator[tuple[int, str]]:
    patterns = FORBIDDEN + (FORBIDDEN_CPP if source.suffix in CPP_SUFFIXES else [])
    for number, line in numbered(source):
        for pattern, reason in patterns:
            found = pattern.search(line)
            if found:
                yield number, f"`{found[0]}`: {reason}"


def several_titles(source: Source) -> Iterator[tuple[int, str]]:
    if source.suffix != ".md":
        return
    titles, in_fence = 0, False
    for number, line in numbered(source):
        if line.startswith("```"):
            in_fence = not in_fence
        elif line.startswith("# ") and not in_fence:
            titles += 1
            if titles > 1:
                yield number, "a second title"


def missing_purpose(source: Source) -> Iterator[tuple[int, str]]:
    if source.suffix in CPP_SUFFIXES and not source.text.startswith(("//", "/*")):
        # An implementation file may leave it to the header of the same name beside it.
        header = ROOT / Path(source.path).with_suffix(".hpp")
        if source.suffix != ".cpp" or not header.exists():
            yield 1, "no comment that says the file's purpose"
    if source.suffix == ".py" and source.text and not source.text.startswith(('"""', 'r"""', "#!")):
        yield 1, "no docstring that says the file's purpose"


def long_functions(source: Source) -> Iterator[tuple[int, str]]:
    if source.suffix == ".py":
        functions = python_functions(source.text)
    elif source.suffix in CPP_SUFFIXES:
        functions = cpp_functions(source.text)
    else:
        return
    for first, last, name in functions:
        if last - first + 1 > FUNCTION_LINES_MAX:
            yield first, f"{name}: {last - first + 1} lines"


def python_functions(text: str) -> Iterator[tuple[int, int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            # A docstring is the contract, not the function's code.
            contract = 0
            if ast.get_docstring(node, clean=False) is not None:
                contract = (body[0].end_lineno or 0) - body[0].lineno + 1
            yield node.lineno + contract, node.end_lineno or 0, node.name


def blank_comments_and_strings(text: str) -> str:
    """Replace what is not code by spaces, so that braces count and line numbers stay."""
    token = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(?P<d>[^(\s]*)\(.*?\)(?P=d)"|"(?:\\.|[^"\\\n])*"'
        r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*",
        re.DOTALL | re.MULTILINE,
    )
    return token.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def cpp_functions(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield first line, last line and name of each function body outside other functions.

    A body is a brace after a parameter list that no namespace, type or initializer opens.
    """
    stack: list[tuple[str, int, str]] = []
    head, head_line, line = "", 1, 1
    for character in blank_comments_and_strings(text):
        if character == "\n":
            line += 1
        if character == "{":
            kind = brace_kind(head, inside_function=any(k == "function" for k, _, _ in stack))
            name = re.search(r"([~\w:]+)\s*\(", head)
            stack.append((kind, head_line, name[1] if name else head.strip()))
            if kind == "initializer":
                continue
        elif character == "}":
            if not stack:
                return
            kind, first, name_text = stack.pop()
            if kind == "function":
                yield first, line, name_text
            if kind == "initializer":
                continue
        elif character != ";":
            if not head.strip() and not character.isspace():
                head_line = line
            head += character
            continue
        head = ""


def brace_kind(head: str, *, inside_function: bool) -> str:
    """Classify what a brace opens from the text since the last statement or block."""
    if inside_function or re.match(r"\s*(?:inline\s+)?(?:namespace|enum|extern)\b", head):
        return "other"
    # Template parameters may mention `class`; a type's own head has no parameter list.
    if "(" not in head:
        return "other"
    # A member initializer `: name_{`, `, name_{`, and a default argument are not bodies.
    if re.search(r"\)[^()]*:(?!:).*[\w>]$|[(,=]\s*$", head, re.DOTALL):
        return "initializer"
    return "function"


CHECKS: list[Check] = [
    long_lines,
    long_file,
    long_functions,
    white_space,
    control_characters,
    forbidden_words,
    several_titles,
    missing_purpose,
]


@cache
def project_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return sorted(path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file())


@cache
def project_sources() -> list[Source]:
    sources = []
    for path in project_files():
        content = (ROOT / path).read_bytes()
        if b"\0" in content or EXEMPT.search(path):
            continue
        try:
            sources.append(Source(path, content.decode()))
        except UnicodeDecodeError:
            # A fuzzer's seed or another binary; only its size is looked at.
            continue
    return sources


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_project(check: Check) -> None:
    findings = [
        f"{source.path}:{number}: {finding}"
        for source in project_sources()
        for number, finding in check(source)
    ]
    assert findings == [], "\n" + "\n".join(findings)


def test_no_large_blobs() -> None:
    large = [path for path in project_files() if (ROOT / path).stat().st_size > BLOB_BYTES_MAX]
    assert large == []


def test_the_project_is_seen() -> None:
    assert {"pyproject.toml", "CMakeLists.txt", "kvstore/__init__.py"} <= set(project_files())
    assert any(source.suffix == ".cpp" for source in project_sources())


FUNCTION = "int f(int a) {{\n{}}}\n"
CPP_HEAD = "// Purpose.\n"


@pytest.mark.parametrize(
    ("check", "path", "bad", "good"),
    [
        (long_lines, "a.cpp", "x" * 101, "x" * 100),
        (long_lines, "a.md", "x" * 101, "| " + "x" * 101),
        (long_file, "a.py", "\n" * 701, "\n" * 700),
        (long_functions, "a.cpp", FUNCTION.format("\n" * 69), FUNCTION.format("\n" * 68)),
        (long_functions, "a.py", "def f():\n" + "    1\n" * 70, "def f():\n" + "    1\n" * 69),
        (white_space, "a.py", "a \n", "a\n"),
        (white_space, "a.py", "\ta\n", "    a\n"),
        (white_space, "Makefile", "\ta\tb\n", "\ta b\n"),
        (white_space, "a.py", "a", "a\n"),
        (white_space, "a.py", "a\n\n", "a\n"),
        (control_characters, "a.py", "\u200b", "\u00e9"),
        (control_characters, "a.py", "\x07", "\\x07"),
        (forbidden_words, "a.py", "# TO" + "DO: later", "# to do"),
        (forbidden_words, "a.py", "/ho" + "me/somebody", "$HOME/somebody"),
        (forbidden_words, "a.md", "pip install kv" + "store", "pip install kvstore-dm"),
        (forbidden_words, "a.cpp", "std::atomic_thread_" + "fence(x)", "fence(x)"),
        (several_titles, "a.md", "# A\n# B\n", "# A\n```\n# B\n```\n"),
        (missing_purpose, "absent.cpp", "#include <x>\n", CPP_HEAD),
        (missing_purpose, "a.py", "import os\n", '"""Purpose."""\n'),
    ],
)
def test_check(check: Check, path: str, bad: str, good: str) -> None:
    assert list(check(Source(path, bad))) != []
    assert list(check(Source(path, good))) == []


def test_cpp_functions_are_found() -> None:
    text = """\
namespace a {
class B : public C {
 public:
  B(int x) : x_{x}, y_(x) {
    use("}");  // }
  }
  int get() const { return x_; }
};
template <class T>
auto f(T t) -> int {
  auto inner = [&](int y) {
    return y;
  };
  return inner(t);
}
enum { kOne = 1 };
constexpr int kTable[] = {1, 2};
}
TEST_CASE("a {") {
}
"""
    assert [(first, last) for first, last, _ in cpp_functions(text)] == [
        (3, 6),
        (7, 7),
        (9, 15),
        (19, 20),
    ]
