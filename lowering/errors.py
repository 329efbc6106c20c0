"""What lowering refuses."""


class LoweringError(ValueError):
    """An expression that no kernel can be written for: `part` is the field of the spec it stands in."""

    def __init__(self, what: str, part: str = "") -> None:
        super().__init__(what)
        self.part = part
