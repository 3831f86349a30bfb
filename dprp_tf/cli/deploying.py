"""Commands from a trained model to a timed file: fold, export, bench."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table, print_text, status
from dprp_tf.cli.inputs import load_data, load_test_samples, require_low_rank, require_suffix
from dprp_tf.cli.next_steps import data_options, say_next, steps_of_plain
from dprp_tf.cli.options import ImageSize, Json, Mean, Std

__all__ = ["bench", "export", "fold"]


@command
def fold(
    model: Annotated[Path, typer.Argument(help="A .keras file with SVD layers.")],
    output: Annotated[Path, typer.Argument(help="The .keras file to write.")],
    form: Annotated[str, typer.Option(help="smallest, fast, dense or two_stage.")] = "smallest",
    plan: Annotated[Path | None, typer.Option(help="What `dprp plan` wrote; wins.")] = None,
    as_json: Json = False,
) -> None:
    """Fold a low-rank model into plain Keras layers.

    Example: dprp fold runs/cifar/model.keras small.keras --plan plan.json
    """
    require_suffix(output, ".keras")
    load_keras()
    from dataclasses import asdict

    from dprp_tf.conversion.folding import choose_forms
    from dprp_tf.conversion.folding import fold as fold_model
    from dprp_tf.costs.fold_plan import FoldPlan
    from dprp_tf.training.saving import load_model, save_model

    found = None if plan is None else FoldPlan.load(plan)
    loaded = require_low_rank(load_model(model), model)
    folded = fold_model(loaded, form=form, plan=found)
    save_model(folded, output)
    rows = [asdict(row) for row in choose_forms(loaded, form=form, plan=found)]
    if as_json:
        print_json({"output": str(output), "parameters": folded.count_params(), "layers": rows})
        return
    for row in rows:
        print_text(
            f"{row['name']}: rank {row['rank']} of {row['full_rank']}, {row['form']} "
            f"({row['reason']})"
        )
    print_text(f"{output}: {folded.count_params():,} parameters")
    if found is None:
        print_text("Nothing was timed: `dprp plan` finds the fastest form of each layer.")
        say_next(*steps_of_plain(output, data_options(None)))
        return
    print_text(
        f"Chosen by times in {found.precision} on {found.target}: for a file in another precision "
        "plan anew."
    )
    say_next(*steps_of_plain(output, data_options(None), found.precision, found.runtime))


@command
def export(
    model: Annotated[Path, typer.Argument(help="A .keras file, folded or not.")],
    output: Annotated[Path, typer.Argument(help="The .tflite or .onnx file to write.")],
    quantization: Annotated[
        str | None, typer.Option(help="float16, int8, or for .tflite dynamic.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data to calibrate on and to verify with.")
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Images used of each split, of every class alike.")
    ] = 256,
    class_scores: Annotated[
        bool | None,
        typer.Option(
            help="Whether the outputs are scores of classes; by default that is so with --data, "
            "with a softmax, or if the model was compiled with a categorical loss."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model to TFLite or ONNX and verify the file against it.

    Example: dprp export small.keras small.tflite --quantization int8 --data digits
    """
    require_suffix(output, ".tflite", ".onnx")
    load_keras()
    from dprp_tf import deploy
    from dprp_tf.deploy.exporters.class_scores import class_score_outputs
    from dprp_tf.runs.evaluation import plain_model
    from dprp_tf.runs.first_look import first_look
    from dprp_tf.training.saving import load_model

    loaded = load_model(model)
    plain = plain_model(loaded)
    calibration = verification = seen = None
    if data is not None:
        dataset = load_data(data, image_size, mean, std, plain)
        sizes = [tensor.shape[-1] for tensor in plain.outputs]
        # A column for each class of the data; other data may be there to calibrate with.
        if class_score_outputs(loaded, class_scores) or sizes == [len(dataset.classes)]:
            class_scores = True if class_scores is None else class_scores
            look = first_look(plain, dataset)
            look.warn()
            seen = {**dataset.description, **look.as_dict()}
        calibration, _ = dataset.sample("train", samples)
        verification, _ = dataset.sample("test", samples)
    report = deploy.export(
        plain,
        output,
        quantization=quantization,
        calibration_data=calibration if quantization == "int8" else None,
        verification_data=verification,
        class_scores=class_score_outputs(loaded, class_scores),
    )
    if as_json:
        print_json(report.as_dict() | ({} if seen is None else {"data": seen}))
    else:
        print_text(report)
        words = data_options(data, image_size, mean, std) if data is not None else []
        say_next(("its time and accuracy", ("bench", output, *words)))


@command
def bench(
    files: Annotated[list[Path], typer.Argument(help="One or more .tflite or .onnx files.")],
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads of the runtime, 1 by default; repeat for more."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="local (the default), qemu:cortex-a72, ssh://user@host, adb://serial; repeat."
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs first.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Timed samples per file.")] = 50,
    data: Annotated[str | None, typer.Option(help="Data to find each file's score on.")] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="What is good: mean_iou, mean_squared_error, psnr or a Keras metric; the labels "
            "may then be of any shape, y_test in a .npz.",
            show_default="accuracy",
        ),
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Test samples for the score, of every class alike; all by default."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and plots, such as a run folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time files on targets; those of one target are timed in turns and compared with the first.

    Example: dprp bench dense.tflite small.tflite --threads 1 --threads 4 --data digits
    """
    from dprp_tf.deploy.measurement.sweep import sweep
    from dprp_tf.files.atomic import require_writable, write_json
    from dprp_tf.report import NothingToPlotError, bench_report, save_bench_plots

    if output is not None:
        require_writable(output / "bench.json")
    split, said = None, dict[str, Any]()
    if data is not None:
        load_keras()
        split, said = load_test_samples(
            data, image_size, mean, std, samples=samples, score=score, files=files
        )
    with status() as progress:
        found = sweep(
            files,
            threads=threads or (1,),
            targets=target or ("local",),
            warmup=warmup,
            repeats=repeats,
            data=split,
            score=score,
            progress=progress,
        )
    content = found.as_dict()
    if split is not None:
        content |= {"data": said, "samples": len(split[1])}
    if output is not None:
        write_json(output / "bench.json", content)
        with contextlib.suppress(NothingToPlotError):
            save_bench_plots(content, output)
    if as_json:
        print_json(content)
    else:
        print_table(bench_report(content))
        if output is not None:
            print_text(output / "bench.json")
            say_next(("its page", ("report", output)))
        else:
            words = data_options(data, image_size, mean, std) if data is not None else []
            kept = ("bench", *files, *words, "--output", "runs/bench")
            say_next(("the same for a page", kept))
    if found.failures:
        places = ", ".join(dict.fromkeys(failure.target for failure in found.failures))
        raise RuntimeError(f"some targets could not measure: {places}; see the messages above")
