"""A translation run from recipe to scored model: tokenizers, corpora, training, the model directory.

Several processes under torchrun run it together. The first one holds the run directory, prepares, scores and writes;
the others wait where they need what it makes, and take part in training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.data.batches import Batch, BatchStream, TokenBudget
from regard.data.corpus import Corpus, prepare, sha256_of_files
from regard.data.fetch import Progress
from regard.data.readers import DataSpec, read
from regard.data.records import BadRecords
from regard.errors import ConfigError, DataError, RegardError, TrainingError
from regard.inputs.sentences import are_single_sentences
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks import run_directory
from regard.tasks.recipe import plain
from regard.tasks.translate.card import model_card
from regard.tasks.translate.evaluation import Evaluation, evaluate
from regard.tasks.translate.recipe import ROLES, TranslateData, TranslateRecipe, with_root
from regard.tasks.translate.scoring import score
from regard.tasks.translate.translator import Translator, TranslatorConfig
from regard.training.batch_budget import Found, find_batch_tokens, kept_batch_tokens
from regard.training.launch import num_on_this_machine
from regard.training.loop import Summary, Trainer
from regard.training.monitor import Silent, Watcher
from regard.training.objective import Loss, cross_entropy
from regard.training.precision import resolved_precision
from regard.training.processes import World, check_parts, opened

# What a run that never began may leave in its folder.
LEFTOVERS = {run_directory.LOCK, f"{run_directory.RECIPE}.unfinished"}


def train(
    recipe: TranslateRecipe, folder: Path, *, origin: str = "recipe", watcher: Watcher | None = None
) -> dict[str, Any]:
    """Trains, or goes on with, the run in `folder`; returns its result (also in result.json).

    origin: the recipe's path, to which its paths are relative, or what else to name in errors. A finished run returns
    its result at once. Of several processes that torchrun has started, all call it and all return the result; the first
    one's watcher is told.
    Raises: any RegardError; the run directory is then usable by the same command, and by any other where the mistake
    was found before the first step.
    """
    with opened() as world:
        watcher = watcher if watcher is not None and world.is_first else Silent()
        check_parts(recipe.training.accumulate, world)
        data = world.in_turn(lambda: with_root(recipe, Path(origin), _downloads_told(watcher)))
        recipe = recipe.model_copy(update={"data": data})
        with ExitStack() as held:
            is_new = world.first(lambda: _hold(held, recipe, folder, origin))
            _check_shared(folder, world)
            result = world.first(lambda: run_directory.read_result(folder))
            if result is not None:
                watcher.said(f"{folder}: this run has finished; its result follows")
                return result
            try:
                return _train(recipe, folder, watcher, world)
            except RegardError:
                # Where it failed before the first step there is nothing to resume.
                if world.is_first and is_new and not (folder / "metrics.jsonl").exists():
                    (folder / run_directory.RECIPE).unlink(missing_ok=True)
                    shutil.rmtree(folder / "data", ignore_errors=True)
                raise


def _hold(held: ExitStack, recipe: TranslateRecipe, folder: Path, origin: str) -> bool:
    """Takes the run directory until `held` ends; whether the run is a new one. Raises: ConfigError, TrainingError."""
    is_new = not (folder / run_directory.RECIPE).is_file()
    if is_new and folder.is_dir():
        foreign = sorted({path.name for path in folder.iterdir()} - LEFTOVERS)
        if foreign:
            remedy = "give a new or empty folder with --run"
            raise ConfigError(f"{folder}: holds {foreign[0]} and no {run_directory.RECIPE}, so it is no run; {remedy}")
    held.enter_context(run_directory.opened(folder, json.loads(json.dumps(plain(recipe))), origin))
    return is_new


def _check_shared(folder: Path, world: World) -> None:
    """Raises: TrainingError where this process does not see the folder that the first one holds."""
    if not (folder / run_directory.RECIPE).is_file():
        remedy = "give a --run on a disk that all machines of the run share"
        raise TrainingError(f"{folder}: holds the run of process 1 of {world.size}, which is not seen here; {remedy}")


def _train(recipe: TranslateRecipe, folder: Path, watcher: Watcher, world: World) -> dict[str, Any]:
    # All data is looked at before the first step: what is wrong with the test set shows now, not hours later.
    validation, bad_validation = world.in_turn(
        lambda: _pairs(recipe.data, "validation", watcher, recipe.validation.max_sentences)
    )
    test, bad_test = world.in_turn(lambda: _pairs(recipe.data, "test", watcher))
    source, target = world.in_turn(lambda: tokenizers(recipe, folder / "data", watcher))
    corpus = Corpus.open(world.first(lambda: corpora(recipe, folder / "data", source, target, watcher).folder))
    torch.manual_seed(recipe.seed)
    model = EncoderDecoder(len(source), len(target), recipe.model)
    num_parameters = model.num_parameters()
    longest = int(corpus.lengths("source").max())
    about: dict[str, Any] = {
        "recipe": json.loads(json.dumps(plain(recipe))),
        "data": {
            "train": corpus.sha256,
            "records": len(corpus),
            "tokenizer": source.fingerprint(),
            "bad_records": {
                "train": corpus.description["bad_records"],
                "validation": bad_validation.to_record(),
                "test": bad_test.to_record(),
            },
        },
        "parameters": num_parameters,
    }
    config = TranslatorConfig(
        recipe.data.source_language,
        recipe.data.target_language,
        recipe.model,
        recipe.decoding,
        longest,
        about,
        sentence_level=are_single_sentences([text for text, _ in validation], recipe.data.source_language),
    )

    def translator(trained: nn.Module) -> Translator:
        assert isinstance(trained, EncoderDecoder)
        return Translator(trained, source, target, config)

    def validate(trained: nn.Module) -> dict[str, float]:
        return validation_scores(translator(trained), validation, recipe)

    stream = _stream(corpus, world.in_turn(lambda: _budget(recipe, model, corpus, folder, watcher, world)), recipe)
    shares = stream.padding_share(0)
    told = ", ".join(f"{role} {share:.1%}" for role, share in shares.items())
    watcher.said(f"{num_parameters:,} parameters; {stream.num_batches(0)} batches an epoch; padding {told}")
    if world.size > 1:
        how = {"replicate": "each with all of the model", "shard": "each with a shard of the model"}
        watcher.said(f"{world.size} processes, {how[recipe.training.parallel]}")
    trainer = Trainer(
        model,
        stream,
        recipe.training,
        folder,
        objective=objective(recipe.training.label_smoothing),
        validate=validate,
        metric=recipe.validation.metric,
        seed=recipe.seed,
        keep_best=lambda trained: translator(trained).save(folder / "model", model_card(config, None)),
        watcher=watcher,
        real_queries=real_queries,
        workers=recipe.data.workers,
        world=world,
        device=world.device(),
    )
    began = time.monotonic()
    summary = trainer.run()
    seconds = time.monotonic() - began
    return world.first(lambda: _finished(recipe, folder, translator(model), test, summary, seconds))


def _stream(corpus: Corpus, budget: TokenBudget, recipe: TranslateRecipe) -> BatchStream:
    return BatchStream(corpus, budget, seed=recipe.seed, roles=ROLES)


def _budget(
    recipe: TranslateRecipe, model: EncoderDecoder, corpus: Corpus, folder: Path, watcher: Watcher, world: World
) -> TokenBudget:
    """The recipe's budget of a batch; for `auto` the one that was found when the run began, or is found now.

    Raises: ConfigError where it cannot be found.
    """
    batch = recipe.data.batch
    if isinstance(batch, TokenBudget):
        return batch

    def find() -> Found:
        if world.size > 1 and recipe.training.parallel == "shard":
            raise ConfigError(
                "data.batch.batch_tokens is auto, which is found with all of the model on one device, but"
                " training.parallel is shard; set data.batch.batch_tokens to a number"
            )
        device = world.device()
        watcher.said("looking for the number of tokens a batch")
        return find_batch_tokens(
            model,
            lambda batch_tokens: _stream(corpus, batch.of(batch_tokens), recipe),
            objective(recipe.training.label_smoothing),
            smallest=recipe.data.max_tokens,
            dtype=resolved_precision(recipe.training.precision, device),
            device=device,
            processes=num_on_this_machine(),
        )

    return batch.of(kept_batch_tokens(folder / "data" / "batch_tokens.json", find, watcher.said))


def _finished(
    recipe: TranslateRecipe,
    folder: Path,
    translator: Translator,
    test: list[tuple[str, str]],
    summary: Summary,
    seconds: float,
) -> dict[str, Any]:
    config = translator.config
    evaluations: list[Evaluation] = []
    if test:
        evaluations = evaluate(translator, test, recipe.report, batch_tokens=recipe.decoding_batch_tokens)
    result = {
        "task": "translate",
        "steps": summary.step,
        "stopped_early": summary.stopped_early,
        "seconds_of_last_part": round(seconds, 1),  # of this process: a resumed run had earlier parts
        "parameters": config.training["parameters"],
        "validation": {"best_step": summary.best_step, "candidates": summary.candidates, "chosen": summary.chosen},
        "test": [evaluation.scores.to_json() for evaluation in evaluations],
        "data": config.training["data"],
    }
    finished = replace(config, training={**config.training, "result": result})
    Translator(translator.model, translator.source_tokenizer, translator.target_tokenizer, finished).save(
        folder / "model", model_card(finished, evaluations)
    )
    run_directory.write_result(folder, result)
    return result


def objective(label_smoothing: float) -> Any:
    """The training loss of a batch: label-smoothed cross-entropy of the target, teacher-forced."""

    def loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        assert isinstance(model, EncoderDecoder)
        device = batch.source.ids.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = model(batch.source.ids, batch.source.lengths, batch.target_inputs)
        targets = batch.target_outputs
        real = targets != Tokenizer.PAD
        head = model.decoder.head
        return cross_entropy(hidden.float()[real], head, targets[real], smoothing=label_smoothing, dtype=dtype)

    return loss


def real_queries(batch: Batch) -> dict[str, Tensor]:
    """Which positions are no padding, by the part of the model that asks with them; both bool [batch, length]."""
    return {"encoder": batch.source.ids != Tokenizer.PAD, "decoder": batch.target_outputs != Tokenizer.PAD}


def validation_scores(
    translator: Translator, pairs: list[tuple[str, str]], recipe: TranslateRecipe
) -> dict[str, float]:
    """BLEU, chrF and the share of exact matches of really decoded validation text."""
    texts = [source for source, _ in pairs]
    references = [target for _, target in pairs]
    found = translator.translate(
        texts,
        recipe.validation.decoding,
        attention=False,
        split=False,
        batch_tokens=recipe.decoding_batch_tokens,
    )
    outputs = [one.text for one in found]
    language = recipe.data.target_language
    scores = score(outputs, references, language=language, scoring=recipe.validation.scoring, bootstrap_samples=0)
    values = {metric.name.lower(): metric.value for metric in scores.metrics}
    matches = sum(output == reference for output, reference in zip(outputs, references, strict=True))
    return {**values, "exact_match": matches / len(pairs)}


# -- data --------------------------------------------------------------------------------------------------------------


def tokenizers(recipe: TranslateRecipe, folder: Path, watcher: Watcher) -> tuple[Tokenizer, Tokenizer]:
    """The source's and the target's tokenizer, trained on the training text and kept in `folder`."""
    config = recipe.tokenizers
    if config.joint:
        joint = _tokenizer(recipe.data, ROLES, config.source, "source", folder / "tokenizer.json", watcher)
        return joint, joint
    key = "source" if config.target is None else "target"
    return (
        _tokenizer(recipe.data, ("source",), config.source, "source", folder / "tokenizer.source.json", watcher),
        _tokenizer(
            recipe.data, ("target",), config.target or config.source, key, folder / "tokenizer.target.json", watcher
        ),
    )


def _tokenizer(
    data: TranslateData, roles: Sequence[str], config: TokenizerConfig, key: str, path: Path, watcher: Watcher
) -> Tokenizer:
    """The tokenizer at `path`, trained on the text of `roles` where there is none. key: in the recipe."""
    if not path.is_file():
        texts = _texts(data, roles)  # a file that cannot be read is told here, before any learning
        path.parent.mkdir(parents=True, exist_ok=True)
        watcher.said(f"learning a vocabulary of {config.vocab_size:,} subwords from {' and '.join(roles)}")
        try:
            Tokenizer.train(texts, config).save(path)
        except ConfigError as error:
            raise ConfigError(str(error).replace("tokenizer.vocab_size", f"tokenizers.{key}.vocab_size")) from None
    return Tokenizer.load(path)


def corpora(recipe: TranslateRecipe, folder: Path, source: Tokenizer, target: Tokenizer, watcher: Watcher) -> Corpus:
    """The training corpus, prepared once and memory-mapped from then on, after one look whether it is still what was
    written.

    Raises: DataError when it is damaged, or was prepared from other data.
    """
    data = recipe.data
    parts = [sha256_of_files(data.train.files()), repr(data.train), source.fingerprint(), target.fingerprint()]
    wanted = hashlib.sha256(json.dumps([*parts, data.max_tokens, data.on_bad]).encode()).hexdigest()
    path = folder / "train"
    if path.is_dir():
        try:
            corpus = Corpus.open(path)
            if corpus.fingerprint == wanted:
                corpus.verify()
                return corpus
        except DataError as error:
            raise DataError(f"{error}: delete {path} and run the same command") from None
        raise DataError(f"{path}: was prepared from other data or tokenizers; use another --run, or delete this one")
    report = BadRecords()
    records = read(data.train, ROLES, on_bad=data.on_bad, report=report)
    corpus = prepare(
        records,
        {"source": source, "target": target},
        path,
        max_tokens=data.max_tokens,
        on_bad=data.on_bad,
        report=report,
        fingerprint=wanted,
    )
    watcher.said(f"{len(corpus):,} training records; {report.summary()}")
    return corpus


def _texts(data: TranslateData, roles: Iterable[str]) -> Iterator[str]:
    """The training text of `roles`. Raises: DataError at once for a missing or empty file."""
    records = read(data.train, ROLES, on_bad=data.on_bad)
    return (record.fields[role] for record in records for role in roles)


def _pairs(
    data: TranslateData, name: str, watcher: Watcher, limit: int | None = None
) -> tuple[list[tuple[str, str]], BadRecords]:
    """(source, target) of the part of the data called `name`, none where there is no such part; and its bad records."""
    report = BadRecords()
    spec: DataSpec | None = getattr(data, name)
    if spec is None:
        return [], report
    records = read(spec, ROLES, on_bad=data.on_bad, report=report, limit=limit)
    pairs = [(record.fields["source"], record.fields["target"]) for record in records]
    if report:
        watcher.said(f"{name} data: {report.summary()}")
    return pairs, report


def _downloads_told(watcher: Watcher) -> Progress:
    """Tells the watcher of each file that is fetched, once."""
    told: set[str] = set()

    def progress(name: str, received: int, size: int | None) -> None:
        if name not in told:
            told.add(name)
            watcher.said(f"fetching {name}" + ("" if size is None else f", {size / 1e6:.1f} MB"))

    return progress
