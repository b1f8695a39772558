"""A CUDA device that is pretended: its tensors are on the CPU, and what a GPU refuses is refused.

For machines without one. Within ``pretended_gpu``, ``torch.device("cuda")`` exists: tensors made
there or sent there count as there, and so does what is computed from them. An operation on tensors
of both devices, NumPy's look at one that is there, or a random generator of the other device raise
as they would. Mixed precision is that of the CPU, speed and memory mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
Tensor = torch.Tensor
aten = torch.ops.aten

# What may have arguments on both devices: copies, and indices of a tensor that is on the GPU
BOTH = {aten.copy_, aten._to_copy, aten._foreach_copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class Residents:
    """The storages that count as on the GPU, as long as they live."""

    def __init__(self) -> None:
        self._storages: dict[int, StorageWeakRef] = {}
        self.transfers = 0
        # during a call whose arguments are there (a backward pass, say): what PyTorch itself makes
        # anew in it is there, too, though it says "cpu"
        self.inside = False

    def add(self, tensor: Tensor) -> Tensor:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._storages[reference.cdata] = reference  # which keeps the address from another's use
        if len(self._storages) % 4096 == 0:
            self._storages = {k: v for k, v in self._storages.items() if not v.expired()}
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._storages

    def remove(self, tensor: Tensor) -> Tensor:
        self._storages.pop(tensor.untyped_storage()._cdata, None)
        return tensor

    def add_all(self, values: Any) -> Any:
        """Count all tensors of a structure as on the GPU."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return values


class Operations(TorchDispatchMode):
    """Every operation, those of the gradient among them: arguments on one device, results there."""

    def __init__(self, residents: Residents) -> None:
        super().__init__()
        self.residents = residents

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor in self.residents for tensor in given]
        if any(there) and not all(there):
            self._refuse_two_devices(func, args, given, there)
        arrives = any(there) or (not given and self.residents.inside)
        generator = kwargs.get("generator")
        if arrives and generator is not None:
            raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator")
        result = func(*args, **kwargs)
        if arrives:
            old = {tensor.untyped_storage()._cdata for tensor in given}
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in old:
                    self.residents.add(leaf)
        return result

    def _refuse_two_devices(
        self, func: Any, args: Sequence[Any], given: list[Tensor], there: list[bool]
    ) -> None:
        packet = func.overloadpacket
        if packet in BOTH or (packet in INDEXED and args[0] in self.residents):
            return
        # numbers may stay where they are
        strangers = [t for t, is_there in zip(given, there, strict=True) if not is_there]
        if all(tensor.ndim == 0 for tensor in strangers):
            return
        shapes = [
            f"{tuple(t.shape)} on {GPU if is_there else CPU}"
            for t, is_there in zip(given, there, strict=True)
        ]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, found in {func}: {', '.join(shapes)}"
        )


class Calls(TorchFunctionMode):
    """What is asked of tensors in Python: where they are, to go elsewhere, to be an array."""

    def __init__(self, residents: Residents) -> None:
        super().__init__()
        self.residents = residents

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        there = first is not None and first in self.residents
        if func == Tensor.device.__get__:
            return GPU if there else func(*args)
        if func == Tensor.is_cuda.__get__:
            return there
        if func == Tensor.is_cpu.__get__:
            return not there
        if func is Tensor.get_device:
            return 0 if there else -1
        if func in (Tensor.numpy, Tensor.__array__) and there:
            raise TypeError(f"can't convert {GPU} device type tensor to numpy")
        if func is Tensor.__deepcopy__ and there:
            return self.residents.add(func(*args, **kwargs))
        if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._sent(func, first, args, kwargs)
        if kwargs.get("device") is not None:
            return self._made(func, args, kwargs)
        before = self.residents.inside
        self.residents.inside = before or any(
            isinstance(leaf, Tensor) and leaf in self.residents
            for leaf in tree_leaves((args, kwargs))
        )
        try:
            return func(*args, **kwargs)
        finally:
            self.residents.inside = before

    def _sent(self, func: Any, tensor: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """``.to``, ``.cpu`` and ``.cuda``."""
        there = tensor in self.residents
        if func is Tensor.to:
            other = args[1] if len(args) > 1 else kwargs.get("other")
            if isinstance(other, Tensor):
                device: Any = GPU if other in self.residents else CPU
                result = tensor.to(other.dtype)
            else:
                copy = kwargs.pop("copy", False)
                device, dtype, _, form = torch._C._nn._parse_to(*args[1:], **kwargs)
                wanted = {"dtype": dtype, "memory_format": form, "copy": copy or None}
                wanted = {key: value for key, value in wanted.items() if value is not None}
                result = func(tensor, **wanted) if wanted else tensor
        else:
            device, result = (CPU if func is Tensor.cpu else GPU), tensor
        goes = there if device is None else device.type == "cuda"
        if goes == there:
            return result
        self.residents.transfers += 1
        if result is tensor:
            result = tensor.clone()
        return self.residents.add(result) if goes else self.residents.remove(result)

    def _made(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """``torch.zeros(..., device=...)`` and what else makes tensors."""
        device = kwargs["device"]
        device = GPU if isinstance(device, int) else torch.device(device)
        if device.type != "cuda":
            result = func(*args, **kwargs)
            for leaf in tree_leaves(result):
                self.residents.remove(leaf)
            return result
        generator = kwargs.get("generator")
        if generator is not None:
            raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator")
        result = func(*args, **{**kwargs, "device": CPU})
        old = [
            leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, (Tensor, np.ndarray))
        ]
        if old and isinstance(result, Tensor):
            result = result.clone()  # it may look at the very memory
        return self.residents.add_all(result)


@contextmanager
def pretended_gpu() -> Iterator[Residents]:
    """Yield the tensors that count as on the GPU; see the module."""
    residents = Residents()
    load, autocast = torch.load, torch.autocast.__init__

    def loaded(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if isinstance(map_location, (str, torch.device)) and "cuda" in str(map_location):
            return residents.add_all(load(*args, map_location="cpu", **kwargs))
        return load(*args, map_location=map_location, **kwargs)

    def cast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def returns(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    cuda = {
        "is_available": returns(True),
        "device_count": returns(1),
        "current_device": returns(0),
        "get_device_name": returns("pretended"),
        "is_bf16_supported": returns(True),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": returns(None),
        "max_memory_allocated": returns(1),
        "mem_get_info": returns((1, 2)),
        "synchronize": returns(None),
        "empty_cache": returns(None),
    }
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(torch, "load", loaded),
        mock.patch.object(torch.autocast, "__init__", cast),
        Operations(residents),
        Calls(residents),
    ):
        yield residents
