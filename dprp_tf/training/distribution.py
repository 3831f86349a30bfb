"""Train on several devices or machines at once: the strategies, and what Keras 3 lacks for them.

Keras 3 trains under `tf.distribute.MirroredStrategy` while all shares of a batch have one size.
Under `MultiWorkerMirroredStrategy` its trainer asks the strategy for reductions that TensorFlow
refuses. Here both answer them. On the JAX backend `keras.distribution.DataParallel` does the work.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.training.rendezvous import meet
from dprp_tf.training.replicas import chief_bytes, chief_value, worker_values

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = [
    "STRATEGIES",
    "Distribution",
    "WorkerLostError",
    "cluster",
    "distribution",
    "multi_worker_strategy",
]

STRATEGIES = ("none", "mirrored", "mirrored:2", "multiworker")

# What a supervisor may take as "start all workers again": EX_TEMPFAIL.
_TRY_AGAIN = 75
_STATE_FILES = ("*.json", "*.keras")
_LOST = ("UnavailableError", "AbortedError", "DeadlineExceededError", "FailedPreconditionError")


class WorkerLostError(RuntimeError):
    """Another worker of the training stopped, so this one can't go on.

    Every worker is to be started again with the same command; the run goes on from its last
    finished epoch. The command line ends with `exit_code`.

    Attributes:
        exit_code: 75, which systems know as "try again".

    Example:

    >>> WorkerLostError("worker 1 is gone").exit_code
    75
    """

    exit_code = _TRY_AGAIN


@dataclass(frozen=True)
class Distribution:
    """On how many devices and machines a training runs, and this process' place among them.

    Made by `distribution`. A step takes a batch of the whole training, each replica an equal
    share of it, and the losses and gradients are those of the batch: the result is that of one
    device up to the order of sums, if batch normalization is synchronized. Layers that draw
    random numbers (dropout, noise) draw the same ones for every share.

    Attributes:
        name: As `distribution` got it.
        strategy: The `tf.distribute.Strategy` or `keras.distribution.DataParallel`; None for one
            device.
        replicas: Devices that share a batch, over all workers.
        addresses: `host:port` of every worker; empty for one.
        worker: This process' place among them, 0 for the chief.
        synchronize_batch_norm: Whether batch normalization takes its statistics from the whole
            batch. Default True. Without it each replica normalizes its share by itself, which
            spares a few exchanges per layer and step and trains another network.
    """

    name: str = "none"
    strategy: Any = None
    replicas: int = 1
    addresses: tuple[str, ...] = ()
    worker: int = 0
    synchronize_batch_norm: bool = True
    _parallel: bool = field(default=False, repr=False)

    @property
    def workers(self) -> int:
        """The number of processes that train together."""
        return max(len(self.addresses), 1)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self.worker == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which to make, load and compile the model."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which to call `fit`."""
        # A tf.distribute strategy is the model's own; what callbacks make is not to be shared.
        return self.scope() if self._parallel else contextlib.nullcontext()

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What a training needs; to be put before every other callback."""
        if self.strategy is None or self._parallel:
            return []
        found: list[keras.callbacks.Callback] = []
        if self.synchronize_batch_norm and self.replicas > 1:
            found.append(_BatchNormSynchronizer())
        if self.workers > 1:
            found.append(_RankAgreement())
        return found

    def require_divisible(self, batch_size: int) -> None:
        """Require that the replicas can share batches equally.

        Args:
            batch_size: Images per step, of all replicas together.

        Raises:
            ValueError: If they can't.
        """
        if batch_size % self.replicas:
            raise ValueError(
                f"`batch_size` must be a multiple of the {self.replicas} replicas, which share a "
                f"batch. Received: batch_size={batch_size}; the nearest are "
                f"{max(batch_size // self.replicas, 1) * self.replicas} and "
                f"{(batch_size // self.replicas + 1) * self.replicas}."
            )

    def evaluation_batch_size(self, count: int, batch_size: int) -> int:
        """Return a batch size that leaves every replica something of every batch.

        Args:
            count: Images in all.
            batch_size: The size wished, an upper limit.

        Returns:
            The size; `batch_size` itself with one replica.

        Raises:
            ValueError: If there are fewer images than replicas.

        Example:

        >>> Distribution(replicas=2).evaluation_batch_size(201, 100)
        99
        """
        if self.replicas == 1:
            return batch_size
        if count < self.replicas:
            raise ValueError(
                f"The test split must have an image for each replica. Received: {count} images "
                f"and {self.replicas} replicas"
            )
        if self._parallel:
            # Shares must be equal there; where they can't be, each device takes all of a batch.
            size = max(batch_size - batch_size % self.replicas, self.replicas)
            return size if count % self.replicas == 0 else size - 1
        for size in range(max(min(batch_size, count), self.replicas), self.replicas - 1, -1):
            if count % size == 0 or count % size >= self.replicas:
                return size
        return count

    def share(self, stream: tf.data.Dataset) -> Any:
        """Return what this process' replicas take of every batch of a stream.

        Args:
            stream: Whole batches `(images, labels)`, the same ones on every worker.

        Returns:
            What `fit` takes, with the number of steps: the stream without end, of which Keras
            takes a batch beforehand to look at its shapes. On the JAX backend, which shares
            batches itself, and with one device the stream itself.
        """
        if self.strategy is None or self._parallel:
            return stream
        stream = stream.repeat()
        return self.strategy.distribute_datasets_from_function(
            functools.partial(_shares, stream=stream)
        )

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """The context in which a lost worker is reported as such.

        Raises:
            WorkerLostError: If another worker has stopped.
        """
        try:
            yield
        except Exception as error:
            reason = _loss_of_worker(error) if self.workers > 1 else None
            if reason is None:
                raise
            raise WorkerLostError(self._lost(reason)) from error

    def _lost(self, reason: str) -> str:
        named = sorted({int(i) for i in re.findall(r"/task:(\d+)", reason)} - {self.worker})
        which = ", ".join(f"{i} ({self.addresses[i]})" for i in named if i < self.workers)
        return (
            f"Worker {which or 'of another index'} has stopped or can't be reached, so worker "
            f"{self.worker} ({self.addresses[self.worker]}) ends too. Look at its messages, then "
            "start every worker again with the same command: the run goes on from its last "
            f"finished epoch. TensorFlow: {reason.strip().splitlines()[0]}"
        )

    @contextlib.contextmanager
    def run_folder(self, folder: str | os.PathLike[str], *, fresh: bool = False) -> Iterator[Path]:
        """The folder to train in: the chief's own, and a temporary copy of its state for others.

        Every worker runs the same program and writes the same files, as variables that replicas
        keep each for themselves can only be saved by all together; but what the others write
        vanishes.

        Args:
            folder: The run folder, which only the chief needs to reach.
            fresh: Whether what the folder holds is to be discarded. Default False.

        Yields:
            Where to read and write.
        """
        if self.workers == 1:
            yield Path(folder)
        elif self.is_chief:
            chief_bytes(self.strategy, b"" if fresh else _pack(Path(folder)))
            yield Path(folder)
            self.wait()
        else:
            with tempfile.TemporaryDirectory(prefix=f"dprp-worker-{self.worker}-") as own:
                _unpack(chief_bytes(self.strategy, b""), Path(own))
                yield Path(own)
                self.wait()

    def wait(self) -> None:
        """Wait until every worker has come this far."""
        if self.workers > 1:
            chief_bytes(self.strategy, b"")

    def require_same(self, terms: Mapping[str, Any]) -> None:
        """Refuse values that differ from those of the chief worker.

        Args:
            terms: JSON values by name.

        Raises:
            ValueError: On a worker where a value differs.
        """
        if self.workers == 1:
            return
        own = json.loads(json.dumps(dict(terms)))
        chief = chief_value(self.strategy, own)
        for name in own.keys() | chief.keys():
            if own.get(name) != chief.get(name):
                raise ValueError(
                    f"`{name}` must be the same on all workers. Received: {own.get(name)!r} on "
                    f"worker {self.worker} and {chief.get(name)!r} on worker 0."
                )


def distribution(
    name: str = "none",
    *,
    workers: Sequence[str] | None = None,
    worker_index: int | None = None,
    synchronize_batch_norm: bool = True,
    timeout: float = 300.0,
    terms: Mapping[str, Any] | None = None,
) -> Distribution:
    """Set up a training on several devices or machines.

    To be called before anything is computed: TensorFlow splits its processor and opens its
    connections only then.

    Args:
        name: `"none"`; `"mirrored"` for all accelerators of this machine, `"mirrored:2"` for two
            of them, or for two halves of the processor where there is none; `"multiworker"` for
            processes on one or more machines, each with all its accelerators. Default `"none"`.
        workers: With `"multiworker"`, `host:port` of every process, the chief first. Default:
            from the environment variable `TF_CONFIG`, as TensorFlow has it.
        worker_index: This process' place among them.
        synchronize_batch_norm: See `Distribution`. Default True.
        timeout: Seconds to wait for the other workers, above 0. Default 300.
        terms: With several workers, what they must have been started with alike. Default: none.

    Returns:
        The distribution.

    Raises:
        ValueError: If an argument is out of range, or the workers were started differently.
        TimeoutError: If a worker does not come in time.
        RuntimeError: If the devices can't be had.

    Example:

    >>> distribution("none").replicas
    1
    """
    kind, _, number = name.partition(":")
    if kind not in ("none", "mirrored", "multiworker") or (number and kind != "mirrored"):
        raise ValueError(
            f"`strategy` must be one of {STRATEGIES} (any number of devices). Received: {name!r}"
        )
    if kind != "multiworker" and (workers is not None or worker_index is not None):
        raise ValueError(
            "`workers` and `worker_index` go with strategy='multiworker'. "
            f"Received: strategy={name!r}"
        )
    if kind == "none":
        return Distribution()
    if kind == "mirrored":
        if number and (not number.isdigit() or int(number) < 1):
            raise ValueError(f"`strategy` must name 1 or more devices. Received: {name!r}")
        return _mirrored(name, int(number) if number else None, synchronize_batch_norm)
    if not timeout > 0:
        raise ValueError(f"`timeout` must be above 0 seconds. Received: {timeout}")
    addresses, index = cluster(workers, worker_index)
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "strategy='multiworker' needs the TensorFlow backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}; 'mirrored' works there."
        )
    versions = {"keras": keras.__version__, **(terms or {})}
    meet(addresses, index, versions, timeout=timeout)
    strategy = _within(timeout, functools.partial(multi_worker_strategy, addresses, index))
    return Distribution(
        name=name,
        strategy=strategy,
        replicas=int(strategy.num_replicas_in_sync),
        addresses=addresses if len(addresses) > 1 else (),
        worker=index,
        synchronize_batch_norm=synchronize_batch_norm,
    )


def cluster(
    workers: Sequence[str] | None = None, worker_index: int | None = None
) -> tuple[tuple[str, ...], int]:
    """Return the addresses of all workers, the chief first, and this one's place.

    Args:
        workers: `host:port` of every worker. Default: from `TF_CONFIG`.
        worker_index: This worker's place. Default: from `TF_CONFIG`.

    Returns:
        Addresses and index.

    Raises:
        ValueError: If they are missing or contradict each other.

    Example:

    >>> cluster(["10.0.0.1:2222", "10.0.0.2:2222"], 1)
    (('10.0.0.1:2222', '10.0.0.2:2222'), 1)
    """
    if workers is None and worker_index is None:
        return _from_environment()
    if workers is None or worker_index is None:
        raise ValueError(
            "`workers` and `worker_index` must be given together. Received: "
            f"workers={workers}, worker_index={worker_index}"
        )
    addresses = tuple(address.strip() for address in workers)
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(
                f"`workers` must be host:port, separated by commas. Received: {address!r}"
            )
    if len(set(addresses)) != len(addresses):
        raise ValueError(f"`workers` must have addresses of their own. Received: {list(addresses)}")
    if not 0 <= worker_index < len(addresses):
        raise ValueError(
            f"`worker_index` must lie in 0..{len(addresses) - 1}. Received: {worker_index}"
        )
    return addresses, worker_index


def _from_environment() -> tuple[tuple[str, ...], int]:
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise ValueError(
            "strategy='multiworker' needs `workers` (host:port,host:port) and `worker_index`, or "
            "the environment variable TF_CONFIG. Received none of them."
        )
    try:
        config = json.loads(text)
        tasks = {job: list(addresses) for job, addresses in config["cluster"].items()}
        kind, index = str(config["task"]["type"]), int(config["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            'TF_CONFIG must be JSON such as {"cluster": {"worker": ["a:1", "b:1"]}, "task": '
            f'{{"type": "worker", "index": 0}}}}. Received: {text!r} ({error})'
        ) from error
    unknown = sorted(tasks.keys() - {"chief", "worker"})
    if unknown or kind not in tasks:
        raise ValueError(
            "TF_CONFIG must have tasks of type chief and worker alone, this one among them. "
            f"Received: {sorted(tasks)}, this one {kind!r}"
        )
    before = len(tasks.get("chief", [])) if kind == "worker" else 0
    return cluster([*tasks.get("chief", []), *tasks.get("worker", [])], before + index)


def multi_worker_strategy(addresses: Sequence[str], index: int) -> Any:
    """Return a `tf.distribute.MultiWorkerMirroredStrategy` that Keras 3 can train with.

    Blocks until all workers have made theirs.

    Args:
        addresses: `host:port` of every worker, the chief first.
        index: Which of them this is.

    Returns:
        The strategy.
    """
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    return _reducing(tf.distribute.MultiWorkerMirroredStrategy)(cluster_resolver=resolver)


@functools.cache
def _reducing(base: Any) -> Any:
    """A class of strategies with the reductions that Keras' trainer asks for."""

    class Reducing(base):
        def reduce(self, reduce_op: Any, value: Any, axis: Any) -> Any:
            if isinstance(value, (tuple, list, dict)):
                # A batch, of which Keras wants the shapes only; shares may differ in size.
                return keras.tree.map_structure(
                    lambda part: self.experimental_local_results(part)[0], value
                )
            # A step's logs are scalars; Keras asks for their mean over an axis they don't have.
            local = self.experimental_local_results(value)[0]
            if axis == 0 and local.shape.rank == 0:
                axis = None
            return super().reduce(reduce_op, value, axis)

    Reducing.__name__ = Reducing.__qualname__ = base.__name__
    return Reducing


def _mirrored(name: str, number: int | None, synchronize: bool) -> Distribution:
    if keras.backend.backend() == "jax":
        return _data_parallel(name, number)
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "strategy='mirrored' needs the TensorFlow or the JAX backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
    import tensorflow as tf

    accelerators = tf.config.list_physical_devices("GPU")
    if accelerators:
        _require_devices(name, number, len(accelerators))
        count = number or len(accelerators)
        devices = [f"GPU:{i}" for i in range(count)]
    else:
        count = number or 1
        _split_processor(tf, count)
        devices = [f"CPU:{i}" for i in range(count)]
    strategy = _reducing(tf.distribute.MirroredStrategy)(devices)
    return Distribution(
        name=name, strategy=strategy, replicas=count, synchronize_batch_norm=synchronize
    )


def _split_processor(tensorflow: Any, count: int) -> None:
    if count == 1:
        return
    processor = tensorflow.config.list_physical_devices("CPU")[0]
    present = tensorflow.config.get_logical_device_configuration(processor)
    if present is not None and len(present) >= count:
        return
    halves = [tensorflow.config.LogicalDeviceConfiguration()] * count
    try:
        tensorflow.config.set_logical_device_configuration(processor, halves)
    except RuntimeError as error:
        raise RuntimeError(
            f"The processor can be split into {count} devices only before TensorFlow computes "
            "anything. Call `distribution` first."
        ) from error


def _data_parallel(name: str, number: int | None) -> Distribution:
    devices = keras.distribution.list_devices()
    _require_devices(name, number, len(devices))
    count = number or len(devices)
    parallel = _parallel_class()(devices=devices[:count])
    return Distribution(name=name, strategy=parallel, replicas=count, _parallel=True)


@functools.cache
def _parallel_class() -> type:
    class Parallel(keras.distribution.DataParallel):
        """Data parallelism; each device takes the whole of a batch that can't be shared."""

        def get_data_layout(self, data_shape: Any) -> Any:
            layout = super().get_data_layout(data_shape)
            count = len(self.device_mesh.devices.flatten())
            if data_shape[0] % count == 0:
                return layout
            return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)

    return Parallel


def _require_devices(name: str, number: int | None, present: int) -> None:
    if number is not None and number > present:
        raise ValueError(
            f"`strategy` must not name more devices than there are. Received: {name!r} with "
            f"{present}"
        )


def _within(seconds: float, make: Any) -> Any:
    """Call what TensorFlow can't be interrupted in, and end the process if it takes too long."""

    def give_up() -> None:
        # No exception reaches the thread that waits inside TensorFlow.
        print(
            f"error: the workers found each other, but TensorFlow could not connect them within "
            f"{seconds:g} seconds: one has stopped, or its address can't be reached from the "
            "others. Start every worker again.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(_TRY_AGAIN)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        return make()
    finally:
        timer.cancel()


def _shares(context: Any, stream: tf.data.Dataset) -> tf.data.Dataset:
    """What the replicas of one input pipeline take of each batch, one element per replica."""
    import tensorflow as tf

    replicas = context.num_replicas_in_sync
    local = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * local

    def share(index: Any, *batch: Any) -> Any:
        def part(values: Any) -> Any:
            # (batch, ...) -> (batch / replicas, ...); sizes differ by one if that leaves a rest
            count = tf.shape(values, out_type=tf.int64)[0]
            chosen = values[count * index // replicas : count * (index + 1) // replicas]
            whole = values.shape[0]
            if whole is not None and whole % replicas == 0:
                chosen = tf.ensure_shape(chosen, [whole // replicas, *values.shape[1:]])
            return chosen

        return tuple(part(values) for values in batch)

    indices = tf.data.Dataset.range(first, first + local)
    return stream.flat_map(lambda *batch: indices.map(lambda index: share(index, *batch))).prefetch(
        2 * local
    )


def _pack(folder: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for pattern in _STATE_FILES:
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    archive.write(path, path.name)
    return content.getvalue()


def _unpack(content: bytes, folder: Path) -> None:
    if not content:
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            (folder / Path(name).name).write_bytes(archive.read(name))


def _loss_of_worker(error: BaseException) -> str | None:
    """What TensorFlow said when a collective operation ended for want of a worker."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if type(seen).__name__ in _LOST and type(seen).__module__.startswith("tensorflow"):
            found = re.search(r"Collective ops is aborted by:.*|.*(?:peer|unhealthy).*", text)
            tasks = " ".join(dict.fromkeys(re.findall(r"/task:\d+", text)))
            return f"{found.group(0) if found else text} {tasks}".strip()
        seen = seen.__cause__
    return None


class _BatchNormSynchronizer(keras.callbacks.Callback):
    """Synchronize batch normalization while a model trains, and leave the model as it was.

    The flag is read when the step is traced; a file that held it could not be trained on
    another backend.
    """

    def __init__(self) -> None:
        super().__init__()
        self._switched: list[Any] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._switched = [
            layer
            for layer in walk_layers(self.model)
            if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
        ]
        for layer in self._switched:
            layer.synchronized = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for layer in self._switched:
            layer.synchronized = False
        self._switched = []


class _RankAgreement(keras.callbacks.Callback):
    """Stop, on all workers, if they do not hold the same ranks as an epoch begins."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        own = [float(size) for size in _sizes(self.model)]
        table = worker_values(self.model, own)
        if not (table == table[0]).all():
            raise RuntimeError(
                f"All workers must hold the same ranks. Received, at the beginning of epoch "
                f"{epoch + 1}, other shapes on some; run them with the same versions of "
                "TensorFlow, Keras and this library."
            )


def _sizes(model: keras.Model) -> list[int]:
    return [int(size) for variable in model.trainable_variables for size in variable.shape]
