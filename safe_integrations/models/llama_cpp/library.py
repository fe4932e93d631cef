"""llama.cpp's shared library, through its C interface.

Two packages of pip bring the library: llama-cpp-python for its own bindings, xllamacpp inside of
its extension module. Neither package is imported. Only what has stood still between versions is
touched: structures of parameters change every month, so they are passed around as they come, and
the few values written to lie where the library's own defaults prove them to be.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safe_integrations.errors import GenerationError, MissingDependencyError, ModelLoadError
from safe_integrations.models.llama_cpp.threads import patience
from safe_integrations.models.openmp import uses_openmp

VARIABLE: Final = "SAFE_INTEGRATIONS_LLAMA_CPP"
"""The environment variable that can name the library's file."""

INSTALL: Final = 'pip install "safe-integrations[llama-cpp]"'
"""The command that installs the library."""

_PLACES: Final = (
    ("llama_cpp", ("lib/libllama.so", "lib/libllama.dylib", "lib/llama.dll")),
    ("xllamacpp", ("xllamacpp*.so",)),  # on Windows its module shows nobody the library
)
"""In which packages the library lies, and under which names; the first is taken."""

_GPU_LAYERS: Final = 16  # bytes into the parameters of a model, behind two pointers
_SPLIT_MODE: Final = 20
_FLAGS: Final = (64, 72, 80)
"""Where the flags of a model's parameters begin: at the first of these that is not all zero."""

_CONTEXT_FLAGS: Final = bytes([0, 1, 1, 1, 1, 0])
"""The defaults of a context's flags, its last ones: no embeddings, the cache on the GPU, too, no
times, operations on the GPU, too, windows kept whole, and last no cells shared by sequences."""


class _Params(ctypes.Structure):
    """Parameters of a model or a context; larger than any version's.

    Structures of more than 16 bytes go through memory, so nobody sees what is too long.
    """

    _fields_ = [("data", ctypes.c_uint8 * 1024)]


class Batch(ctypes.Structure):
    """Tokens to compute, each with its position, its sequences and whether its row is wanted."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", ctypes.POINTER(c_int32)),
        ("embd", ctypes.POINTER(c_float)),
        ("pos", ctypes.POINTER(c_int32)),
        ("n_seq_id", ctypes.POINTER(c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(c_int32))),
        ("logits", ctypes.POINTER(c_int8)),
    ]


_MODEL: Final = c_void_p
_CONTEXT: Final = c_void_p
_MEMORY: Final = c_void_p
_VOCAB: Final = c_void_p
_BUFFER: Final = (c_void_p, c_size_t)

_FUNCTIONS: Final[dict[str, tuple[Any, ...]]] = {
    # name: result, arguments
    "llama_backend_init": (None,),
    "llama_log_set": (None, c_void_p, c_void_p),
    "llama_print_system_info": (c_char_p,),
    "llama_supports_gpu_offload": (c_bool,),
    "llama_model_default_params": (_Params,),
    "llama_model_load_from_file": (_MODEL, c_char_p, _Params),
    "llama_model_free": (None, _MODEL),
    "llama_model_get_vocab": (_VOCAB, _MODEL),
    "llama_model_meta_val_str": (c_int32, _MODEL, c_char_p, *_BUFFER),
    "llama_model_meta_count": (c_int32, _MODEL),
    "llama_model_meta_key_by_index": (c_int32, _MODEL, c_int32, *_BUFFER),
    "llama_model_meta_val_str_by_index": (c_int32, _MODEL, c_int32, *_BUFFER),
    "llama_model_chat_template": (c_char_p, _MODEL, c_char_p),
    "llama_model_n_ctx_train": (c_int32, _MODEL),
    "llama_model_size": (ctypes.c_uint64, _MODEL),
    "llama_model_has_encoder": (c_bool, _MODEL),
    "llama_model_has_decoder": (c_bool, _MODEL),
    "llama_model_is_recurrent": (c_bool, _MODEL),
    "llama_model_is_hybrid": (c_bool, _MODEL),
    "llama_model_is_diffusion": (c_bool, _MODEL),
    "llama_model_n_swa": (c_int32, _MODEL),
    "llama_vocab_type": (c_int32, _VOCAB),
    "llama_vocab_n_tokens": (c_int32, _VOCAB),
    "llama_vocab_get_text": (c_char_p, _VOCAB, c_int32),
    "llama_vocab_get_score": (c_float, _VOCAB, c_int32),
    "llama_vocab_get_attr": (c_int32, _VOCAB, c_int32),
    "llama_vocab_is_eog": (c_bool, _VOCAB, c_int32),
    "llama_vocab_is_control": (c_bool, _VOCAB, c_int32),
    "llama_vocab_bos": (c_int32, _VOCAB),
    "llama_vocab_eos": (c_int32, _VOCAB),
    "llama_vocab_eot": (c_int32, _VOCAB),
    "llama_vocab_get_add_bos": (c_bool, _VOCAB),
    "llama_vocab_get_add_eos": (c_bool, _VOCAB),
    "llama_tokenize": (
        c_int32, _VOCAB, c_char_p, c_int32, ctypes.POINTER(c_int32), c_int32, c_bool, c_bool,
    ),
    "llama_token_to_piece": (c_int32, _VOCAB, c_int32, c_void_p, c_int32, c_int32, c_bool),
    "llama_context_default_params": (_Params,),
    "llama_init_from_model": (_CONTEXT, _MODEL, _Params),
    "llama_free": (None, _CONTEXT),
    "llama_n_ctx": (c_uint32, _CONTEXT),
    "llama_n_ctx_seq": (c_uint32, _CONTEXT),
    "llama_n_batch": (c_uint32, _CONTEXT),
    "llama_set_n_threads": (None, _CONTEXT, c_int32, c_int32),
    "llama_set_abort_callback": (None, _CONTEXT, c_void_p, c_void_p),
    "llama_get_memory": (_MEMORY, _CONTEXT),
    "llama_memory_seq_rm": (c_bool, _MEMORY, c_int32, c_int32, c_int32),
    "llama_memory_seq_cp": (None, _MEMORY, c_int32, c_int32, c_int32, c_int32),
    "llama_memory_seq_pos_min": (c_int32, _MEMORY, c_int32),
    "llama_state_get_size": (c_size_t, _CONTEXT),
    "llama_state_get_data": (c_size_t, _CONTEXT, *_BUFFER),
    "llama_state_set_data": (c_size_t, _CONTEXT, *_BUFFER),
    "llama_state_seq_get_size": (c_size_t, _CONTEXT, c_int32),
    "llama_decode": (c_int32, _CONTEXT, Batch),
    "llama_get_logits_ith": (c_void_p, _CONTEXT, c_int32),
}  # fmt: skip
"""What we call. All of it is declared, so that a library that lacks any is refused at once."""


class Llama:
    """The functions of the library, as attributes under their names in C.

    They release the interpreter's lock while they run.

    Args:
        path: The library's file.

    Raises:
        ModelLoadError: It cannot be loaded, or is not the llama.cpp that we know.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        try:
            with patience():
                self._handle = ctypes.CDLL(str(path))
            uses_openmp("libgomp.so.1", *path.parent.glob("libgomp*"))
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be loaded: {error}; {_REMEDY}") from error
        missing = [name for name in _FUNCTIONS if not hasattr(self._handle, name)]
        if missing:
            raise ModelLoadError(f"{path} has no {', '.join(missing[:3])}: {_REMEDY}")
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(self._handle, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self._check_defaults()
        self._listeners = 0
        self.llama_log_set(_IGNORE, None)
        self.llama_backend_init()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def _check_defaults(self) -> None:
        """Refuses a library whose parameters do not lie where we write to them."""
        context = self.llama_context_default_params()
        model = self.llama_model_default_params()
        sizes = [_number(context, at) for at in (0, 4, 8, 12)]
        layers = (_number(model, _GPU_LAYERS), _number(model, _SPLIT_MODE))
        flags = bytes(context.data).find(_CONTEXT_FLAGS)
        known = flags % 8 == 0 and layers in ((-1, 1), (999, 1))  # no flags: -1
        if sizes != [512, 2048, 512, 1] or not known:
            raise ModelLoadError(f"{self.path} is a llama.cpp with other parameters: {_REMEDY}")

    def load(self, path: Path, *, gpu_layers: int = 0, vocabulary: bool = False) -> Weights:
        """Reads a GGUF file.

        Args:
            path: The file, or the first of several.
            gpu_layers: Layers that a GPU holds; -1 for all.
            vocabulary: Whether to read what stands in front of the weights only.

        Raises:
            ModelLoadError: The file cannot be read; says what the library says.
        """
        params = self.llama_model_default_params()
        _write(params, _GPU_LAYERS, c_int32(gpu_layers))
        if vocabulary:
            flags = next((at for at in _FLAGS if any(params.data[at : at + 8])), None)
            if flags is not None:  # the first of them; without it, all is read
                _write(params, flags, c_bool(True))
        with self.complaints() as lines:
            pointer = self.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            raise ModelLoadError(f"{path} cannot be read by llama.cpp: {_reason(lines)}")
        return Weights(self, pointer, path)

    def context(self, weights: Weights, cells: int, rows: int, sequences: int) -> int:
        """A new context, to be freed with `llama_free`.

        Args:
            weights: The model.
            cells: Tokens that all its sequences hold together.
            rows: Tokens that it computes at once.
            sequences: Sequences that it knows apart, numbered from 0.

        Raises:
            GenerationError: There is no memory for it.
        """
        params = self.llama_context_default_params()
        for at, value in enumerate((cells, rows, rows, sequences)):
            _write(params, 4 * at, c_uint32(value))
        shared = bytes(params.data).find(_CONTEXT_FLAGS) + len(_CONTEXT_FLAGS) - 1
        _write(params, shared, c_bool(True))
        with self.complaints() as lines:
            pointer: int | None = self.llama_init_from_model(weights.pointer, params)
        if not pointer:
            raise GenerationError(f"{weights.path}: no context of {cells} tokens: {_reason(lines)}")
        return pointer

    @contextmanager
    def complaints(self) -> Iterator[list[str]]:
        """Collects warnings and errors that the library writes meanwhile, in this thread."""
        lines = _heard.lines = list[str]()
        self._tell(1)
        try:
            yield lines
        finally:
            _heard.lines = None
            self._tell(-1)

    def _tell(self, more: int) -> None:
        with _guard:
            self._listeners += more
            listener = _LISTENER if self._listeners else _IGNORE
            self.llama_log_set(ctypes.cast(listener, c_void_p), None)


class Weights:
    """A GGUF file that the library has read; freed when nobody holds it any more.

    Attributes:
        llama: The library.
        pointer: The model, as functions take it.
        vocab: Its vocabulary, as functions take it.
        size: Tokens of the vocabulary.
        path: The file.
    """

    def __init__(self, llama: Llama, pointer: int, path: Path) -> None:
        self.llama = llama
        self.pointer = pointer
        self.path = path
        self.vocab: int = llama.llama_model_get_vocab(pointer)
        self.size: int = llama.llama_vocab_n_tokens(self.vocab)
        # at the end of the process the system does it
        weakref.finalize(self, llama.llama_model_free, pointer).atexit = False

    @property
    def architecture(self) -> str:
        """What the file calls its kind of model; in front of the names of many values."""
        return self.value("general.architecture") or ""

    def value(self, key: str) -> str | None:
        """A value of the file as text; None where there is none, or where it is a list."""
        function = self.llama.llama_model_meta_val_str
        size = function(self.pointer, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        function(self.pointer, key.encode(), buffer, size + 1)
        return buffer.value.decode(errors="replace")

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Token ids of a text, UTF-8, nothing added in front of it or behind it.

        Args:
            text: The text.
            special: Whether names of special tokens in it are these tokens.
        """
        count = len(text) + 8
        while True:
            ids = (c_int32 * count)()
            args = (self.vocab, text, len(text), ids, count, False, special)
            found = self.llama.llama_tokenize(*args)
            if found >= 0:
                return ids[:found]
            count = -found  # it tells how many there are

    def piece(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token; those of a special one are its name, or none."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            args = (self.vocab, token, buffer, size, 0, special)
            length: int = self.llama.llama_token_to_piece(*args)
            if length >= 0:
                return buffer.raw[:length]
            size = -length


def open_vocabulary(path: Path) -> Weights:
    """What a GGUF file tells without its weights: values and vocabulary; see `Llama.load`."""
    return library().load(path, vocabulary=True)


def open_model(path: Path, gpu_layers: int = 0) -> Weights:
    """A GGUF file with its weights; see `Llama.load`."""
    return library().load(path, gpu_layers=gpu_layers)


def is_installed() -> bool:
    """Whether there is a library; it is not loaded."""
    return _found() is not None


def library() -> Llama:
    """The library, loaded when it is first asked for, once however many threads ask.

    Raises:
        MissingDependencyError: There is none. Says how to install it.
        ModelLoadError: It cannot be used. Says why.
    """
    with _guard:
        return _library()


@cache
def _library() -> Llama:
    path = _found()
    if path is None:
        raise MissingDependencyError("computing with llama.cpp", "its library", "llama-cpp")
    return Llama(path)


def _found() -> Path | None:
    """The library's file: where the environment says, else where a package keeps it."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    for package, names in _PLACES:
        spec = find_spec(package)
        folders = (spec and spec.submodule_search_locations) or ()
        for folder in folders:
            for name in names:
                if found := sorted(Path(folder).glob(name)):
                    return found[0]
    return None


def _number(params: _Params, at: int) -> int:
    return c_int32.from_buffer(params, at).value


def _write(params: _Params, at: int, value: Any) -> None:
    ctypes.memmove(ctypes.addressof(params) + at, ctypes.byref(value), ctypes.sizeof(value))


def _reason(lines: list[str]) -> str:
    """Of what the library has said, the line that tells most: not one that only names the file."""
    told = "".join(lines).strip().splitlines()
    reasons = (line.partition("error loading model: ")[2] for line in told)
    telling = (reason for reason in reasons if reason and "failed to load model from" not in reason)
    return next(telling, told[0] if told else "it does not say why")


_REMEDY: Final = (
    f"install one that fits with\n{INSTALL}\n(where {VARIABLE} is set: unset it, or let it name "
    "another file)"
)
_SERIOUS: Final = (3, 4)  # warnings, errors
_guard: Final = threading.Lock()
_heard: Final = threading.local()


def _listen(level: int, text: bytes | None, _: object) -> None:
    lines: list[str] | None = getattr(_heard, "lines", None)
    if lines is not None and level in _SERIOUS:
        lines.append((text or b"").decode(errors="replace"))


_LISTENER: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)(_listen)

# A listener in C, which needs no interpreter: the library speaks up from threads of its own.
_C: Final = ctypes.CDLL("msvcrt" if os.name == "nt" else None)
_IGNORE: Final = ctypes.cast(_C.abs, c_void_p)

LENGTH: Final = ctypes.cast(_C.strlen, c_void_p)
"""A function in C that says yes about a text with something in it, and no about an empty one."""
