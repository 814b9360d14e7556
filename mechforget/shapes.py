"""Shapes in signatures, as jaxtyping writes them: `Float[Array, "head prompt"]`.

The tests check them at every call, through jaxtyping's import hook. In any other program they are
there to be read: jaxtyping is used only where it was loaded before, and needn't be installed.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # To a type checker a shape is a comment on the array's type.
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as Num
    from typing import Annotated as Shaped

    from numpy import ndarray as Array
    from numpy.typing import ArrayLike
    from torch import Tensor
else:
    Array = Tensor = Any  # shape and dtype are checked, whichever library they come from

    class ArrayLike:  # stands for an array, or for a list, whose shape isn't checked
        pass

    class _Kind:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, of: tuple[Any, str]) -> Any:
            array, shape = of
            jaxtyping = sys.modules.get("jaxtyping")
            if jaxtyping is None:
                return Any
            checked = getattr(jaxtyping, self.name)[Any, shape]
            return checked | Sequence[Any] | float if array is ArrayLike else checked

    Bool, Float, Int, Num, Shaped = map(_Kind, ("Bool", "Float", "Int", "Num", "Shaped"))

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Num", "Shaped", "Tensor"]
