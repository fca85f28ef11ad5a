"""The fixed-point twin: the same compiled program on the same fixed-point numbers, in one process, in the clear.

It tells what the secure engine would answer, over a whole test set, and costs no communication.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from reluctant.engines.base import Engine, EngineRun, Images, Progress, Security, check_images
from reluctant.engines.settings import Settings
from reluctant.engines.spu import (
    FRACTION_BITS,
    Log,
    Machine,
    Tally,
    Traffic,
    batches,
    compile_program,
    engine_run,
    require_spu,
)
from reluctant.errors import UsageError
from reluctant.program.ops import Program


@dataclass(frozen=True, kw_only=True)
class Twin(Engine):
    """SPU's reference protocol (REF2K) in this process. Not private: a simulation of the arithmetic alone.

    Args:
        fraction_bits: bits after the binary point of the 64-bit fixed-point numbers.
    """

    name: ClassVar[str] = "twin"
    security: ClassVar[Security] = Security(
        adversary="none",
        parties=1,
        dealer="none",
        private=False,
        offline_included=True,
        statement=(
            "Not private. One process runs the program on fixed-point numbers in the clear, to tell what a secure run "
            "would answer."
        ),
    )

    fraction_bits: int = FRACTION_BITS

    def check(self, program: Program) -> None:
        require_spu()
        if program.arrays is None:
            raise UsageError("the program has no arrays; the twin needs the server's numbers")

    def run(
        self, program: Program, images: Images, *, batch: int | None = None, progress: Progress | None = None
    ) -> EngineRun:
        self.check(program)
        images = check_images(
            program.input_shape, images, size := 64 if batch is None else batch, input_range=program.input_range
        )
        begun = time.perf_counter()
        from spu import libspu

        Log(Path(os.devnull))
        description = libspu.link.Desc()
        description.add_party("twin", "twin")
        machine = Machine(libspu.link.create_mem(description, 0), 0, Settings(self.fraction_bits, "REF2K"), None)
        parts = batches(len(images), size)
        compiled = {count: compile_program(program, count) for count in {p.stop - p.start for p in parts}}
        machine.put_arrays(program, program.arrays, 0)
        setup = Traffic(seconds=time.perf_counter() - begun)
        begun, tally = time.perf_counter(), Tally()
        found = []
        for part in parts:
            count = part.stop - part.start
            machine.put_images(images[part], program.input_shape, count, 0)
            machine.run_program(compiled[count], tally)
            found.append([machine.reveal([machine.share(o)], program.shapes[o]) for o in program.outputs])
            if progress is not None:
                progress("twin", part.stop, len(images))
        outputs = [np.concatenate(values) for values in zip(*found, strict=True)]
        online = Traffic(seconds=time.perf_counter() - begun)
        return engine_run(
            program,
            tally,
            outputs,
            online=online,
            setup=setup,
            images=len(images),
            processes=1,
            batch=max(compiled),
            fraction_bits=self.fraction_bits,
        )
