"""The clients: `Client` blocks, `AsyncClient` is the same with `await`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from mecroute import _endpoints
from mecroute._endpoints import (
    Asked,
    AsyncChat,
    AsyncEmbeddings,
    AsyncModels,
    Chat,
    Embeddings,
    Messages,
    Models,
)
from mecroute._loop import LoopThread
from mecroute.config import Config, load_config
from mecroute.decision import Decision
from mecroute.device.probe import DeviceProbe
from mecroute.errors import ConfigError, UsageError
from mecroute.request import ingest
from mecroute.results import Classification, InferResult
from mecroute.runtime import Runtime


class AsyncClient:
    """Answers requests on the device, on a MEC node or in the cloud. For one event loop.

    Args:
        config: the configuration; default: `mecroute.toml` and `MECROUTE_*`. Without any there is no
            key and no network needed: the models of the local registry answer.
        device_probe: what the host knows of the machine better than this process (a phone's battery, say).

    Raises:
        ConfigError: the configuration is wrong.
    """

    def __init__(self, config: Config | None = None, *, device_probe: DeviceProbe | None = None) -> None:
        if config is None:
            config = load_config().config
        elif not isinstance(config, Config):
            raise ConfigError(
                f"config is a {type(config).__name__}, and must be a mecroute.Config",
                hint="Config(**settings) makes one, load_config().config reads one",
            )
        self._config = config
        self._device_probes = (device_probe,) if device_probe is not None else ()
        self._made: Runtime | None = None
        self._closed = False
        self.chat = AsyncChat(self._runtime)
        self.embeddings = AsyncEmbeddings(self._runtime)
        self.models = AsyncModels(self._runtime)

    async def route(
        self,
        *,
        messages: Messages | None = None,
        input: str | Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        model: str = "auto",
        requirements: Asked = None,
        **options: Any,
    ) -> Decision:
        """Decide where a request would go, without running it.

        Args:
            messages: a chat request; or
            input: an embedding request; or with
            labels: a request for one of these classes.
            model, requirements, options: as for the request itself.

        Returns:
            The decision; its `candidates` are empty when every target was rejected.
        """
        body: dict[str, Any] = dict(options)
        if labels is not None:
            body |= {"input": input, "labels": labels}
            request = ingest("classify", model=model, body=body, requirements=requirements)
        elif input is not None:
            request = ingest("embed", model=model, body={**body, "input": input}, requirements=requirements)
        else:
            request = ingest(
                "chat", model=model, body={**body, "messages": messages}, requirements=requirements
            )
        return await (await self._runtime()).pipeline.decide(request)

    async def classify(
        self,
        input: str | Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        model: str = "auto",
        requirements: Asked = None,
        **options: Any,
    ) -> Classification:
        """Say what class each text is of: a trained classifier does, or a chat model that is told the labels.

        Args:
            input: a text or several.
            labels: the classes to choose from. A classifier that has them all is asked as if it had no
                others; a chat model is asked for each text, with a JSON schema. Without them only classifiers
                are asked, and the classes are the model's own: name it.
            model: as for chat.
            requirements: what the caller asks of the answer.
            options: `top_k`, the classes to name in each `scores`.

        Returns:
            One class per text, with the probabilities of all where a classifier answered.

        Raises: as for chat.
        """
        return await _endpoints.classify(self._runtime, input, labels, model, requirements, options)

    async def infer(
        self,
        *,
        inputs: Sequence[Mapping[str, Any]],
        model: str,
        outputs: Sequence[str] | None = None,
        requirements: Asked = None,
    ) -> InferResult:
        """Run a tensor model on a MEC node.

        Args:
            inputs: the Open Inference Protocol's tensors: `{"name", "shape", "datatype", "data"}` each.
            model: which one.
            outputs: names of the outputs wanted; None for all.
            requirements: what the caller asks of the answer.

        Raises: as for chat.
        """
        return await _endpoints.infer(self._runtime, inputs, outputs, model, requirements)

    async def feedback(self, id: str, *, score: float) -> None:
        """Say how good an answer was.

        Args:
            id: the reply's `id`.
            score: 0 (useless) to 1 (right).
        """
        await (await self._runtime()).pipeline.feedback(id, score)

    async def aclose(self) -> None:
        """Unload models and close connections. What is asked from now on is a `UsageError`."""
        self._closed = True
        made, self._made = self._made, None
        if made is not None:
            await made.aclose()

    async def __aenter__(self) -> Self:
        # What the first call would do once is done here, and takes nothing of that call's deadline.
        try:
            (await self._runtime()).prepare()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _runtime(self) -> Runtime:
        if self._closed:
            raise UsageError("the client is closed", hint="make a new AsyncClient, or close it later")
        if self._made is None:
            self._made = Runtime(self._config, device_probes=self._device_probes)
        return self._made


class Client:
    """The blocking client; the same as `AsyncClient` without `await`. Thread-safe.

    Args:
        config, device_probe: as for `AsyncClient`.
    """

    def __init__(self, config: Config | None = None, *, device_probe: DeviceProbe | None = None) -> None:
        self._async = AsyncClient(config, device_probe=device_probe)
        self._loop = LoopThread()
        self.chat = Chat(self._async.chat, self._loop)
        self.embeddings = Embeddings(self._async.embeddings, self._loop)
        self.models = Models(self._async.models, self._loop)

    def route(
        self,
        *,
        messages: Messages | None = None,
        input: str | Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        model: str = "auto",
        requirements: Asked = None,
        **options: Any,
    ) -> Decision:
        """Decide where a request would go, without running it; see `AsyncClient.route`."""
        return self._loop.run(
            self._async.route(
                messages=messages,
                input=input,
                labels=labels,
                model=model,
                requirements=requirements,
                **options,
            )
        )

    def classify(
        self,
        input: str | Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        model: str = "auto",
        requirements: Asked = None,
        **options: Any,
    ) -> Classification:
        """Say what class each text is of; see `AsyncClient.classify`."""
        return self._loop.run(
            self._async.classify(input, labels=labels, model=model, requirements=requirements, **options)
        )

    def infer(
        self,
        *,
        inputs: Sequence[Mapping[str, Any]],
        model: str,
        outputs: Sequence[str] | None = None,
        requirements: Asked = None,
    ) -> InferResult:
        """Run a tensor model; see `AsyncClient.infer`."""
        return self._loop.run(
            self._async.infer(inputs=inputs, model=model, outputs=outputs, requirements=requirements)
        )

    def feedback(self, id: str, *, score: float) -> None:
        """Say how good an answer was; see `AsyncClient.feedback`."""
        self._loop.run(self._async.feedback(id, score=score))

    def close(self) -> None:
        """Unload models and close connections."""
        self._loop.close(self._async.aclose)

    def __enter__(self) -> Self:
        try:
            self._loop.run(self._async.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
