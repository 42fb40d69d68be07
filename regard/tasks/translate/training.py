"""A translation run from recipe to scored model: tokenizers, corpora, training, the model directory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.data.batches import Batch, BatchStream
from regard.data.corpus import Corpus, prepare, sha256_of_files
from regard.data.readers import DataSpec, read
from regard.data.records import BadRecords
from regard.errors import ConfigError, DataError
from regard.inputs.text import Tokenizer
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks import run_directory
from regard.tasks.recipe import plain
from regard.tasks.translate.card import model_card
from regard.tasks.translate.evaluation import Evaluation, evaluate
from regard.tasks.translate.recipe import ROLES, TranslateData, TranslateRecipe
from regard.tasks.translate.scoring import Scoring, score
from regard.tasks.translate.translator import Translator, TranslatorConfig
from regard.training.loop import Summary, Trainer
from regard.training.monitor import Silent, Watcher
from regard.training.objective import Loss, cross_entropy


def train(recipe: TranslateRecipe, folder: Path, *, origin: str = "recipe", watcher: Watcher | None = None) -> dict[str, Any]:
    """Trains, or goes on with, the run in `folder`; returns its result (also in result.json).

    origin: what to name in errors, usually the recipe's path. A finished run returns its result at once.
    Raises: any RegardError; the run directory is then usable by the same command.
    """
    watcher = watcher or Silent()
    if recipe.data.root is not None:
        recipe = recipe.model_copy(update={"data": _resolved(recipe.data)})
    with run_directory.opened(folder, json.loads(json.dumps(plain(recipe))), origin):
        result = run_directory.read_result(folder)
        if result is not None:
            watcher.said(f"{folder}: this run has finished; its result follows")
            return result
        return _train(recipe, folder, watcher)


def _train(recipe: TranslateRecipe, folder: Path, watcher: Watcher) -> dict[str, Any]:
    source, target = tokenizers(recipe, folder / "data", watcher)
    corpus = corpora(recipe, folder / "data", source, target, watcher)
    torch.manual_seed(recipe.seed)
    model = EncoderDecoder(len(source), len(target), recipe.model)
    longest = int(corpus.lengths("source").max())
    about: dict[str, Any] = {
        "recipe": json.loads(json.dumps(plain(recipe))),
        "data": {"train": corpus.sha256, "records": len(corpus), "tokenizer": source.fingerprint()},
        "parameters": model.num_parameters(),
    }
    config = TranslatorConfig(
        recipe.data.source_language, recipe.data.target_language, recipe.model, recipe.decoding, longest, about
    )
    validation = list(_pairs(recipe.data.validation, recipe.data, recipe.validation.max_sentences))

    def translator(trained: nn.Module) -> Translator:
        assert isinstance(trained, EncoderDecoder)
        return Translator(trained, source, target, config)

    def validate(trained: nn.Module) -> dict[str, float]:
        return validation_scores(translator(trained), validation, recipe)

    stream = BatchStream(corpus, recipe.data.batch, seed=recipe.seed, roles=ROLES)
    shares = stream.padding_share(0)
    told = ", ".join(f"{role} {share:.1%}" for role, share in shares.items())
    watcher.said(f"{model.num_parameters():,} parameters; {stream.num_batches(0)} batches an epoch; padding {told}")
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
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    began = time.monotonic()
    summary = trainer.run()
    return _finished(recipe, folder, translator(model), config, summary, time.monotonic() - began, watcher)


def _finished(
    recipe: TranslateRecipe,
    folder: Path,
    translator: Translator,
    config: TranslatorConfig,
    summary: Summary,
    seconds: float,
    watcher: Watcher,
) -> dict[str, Any]:
    evaluations: list[Evaluation] = []
    if recipe.data.test is not None:
        pairs = list(_pairs(recipe.data.test, recipe.data))
        evaluations = evaluate(translator, pairs, recipe.report, batch_tokens=recipe.decoding_batch_tokens)
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
    watcher.said(f"finished: {folder / 'model'}")
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


def validation_scores(translator: Translator, pairs: list[tuple[str, str]], recipe: TranslateRecipe) -> dict[str, float]:
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
    scoring: Scoring = recipe.validation.scoring
    language = recipe.data.target_language
    scores = score(outputs, references, language=language, scoring=scoring, bootstrap_samples=0)
    values = {metric.name.lower(): metric.value for metric in scores.metrics}
    matches = sum(output == reference for output, reference in zip(outputs, references, strict=True))
    return {**values, "exact_match": matches / len(pairs)}


# -- data --------------------------------------------------------------------------------------------------------------


def tokenizers(recipe: TranslateRecipe, folder: Path, watcher: Watcher) -> tuple[Tokenizer, Tokenizer]:
    """The source's and the target's tokenizer, trained on the training text and kept in `folder`."""
    config = recipe.tokenizers
    if config.joint and config.target is not None:
        raise ConfigError("tokenizers.target is given though tokenizers.joint is true; remove it, or set joint to false")
    folder.mkdir(parents=True, exist_ok=True)
    if config.joint:
        path = folder / "tokenizer.json"
        if not path.is_file():
            watcher.said(f"learning a joint vocabulary of {config.source.vocab_size:,} subwords")
            Tokenizer.train(_texts(recipe.data, ROLES), config.source).save(path)
        joint = Tokenizer.load(path)
        return joint, joint
    made = []
    for role, one in zip(ROLES, (config.source, config.target or config.source), strict=True):
        path = folder / f"tokenizer.{role}.json"
        if not path.is_file():
            watcher.said(f"learning {one.vocab_size:,} subwords of the {role}")
            Tokenizer.train(_texts(recipe.data, (role,)), one).save(path)
        made.append(Tokenizer.load(path))
    return made[0], made[1]


def corpora(recipe: TranslateRecipe, folder: Path, source: Tokenizer, target: Tokenizer, watcher: Watcher) -> Corpus:
    """The training corpus, prepared once and memory-mapped from then on."""
    data = recipe.data
    parts = [sha256_of_files(data.train.files()), repr(data.train), source.fingerprint(), target.fingerprint()]
    wanted = hashlib.sha256(json.dumps([*parts, data.max_tokens, data.on_bad]).encode()).hexdigest()
    path = folder / "train"
    if path.is_dir():
        corpus = Corpus.open(path)
        if corpus.fingerprint == wanted:
            return corpus
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
    for record in read(data.train, ROLES, on_bad=data.on_bad):
        for role in roles:
            yield record.fields[role]


def _pairs(spec: DataSpec, data: TranslateData, limit: int | None = None) -> Iterator[tuple[str, str]]:
    for record in read(spec, ROLES, on_bad=data.on_bad, limit=limit):
        yield record.fields["source"], record.fields["target"]


def _resolved(data: TranslateData) -> TranslateData:
    assert data.root is not None
    root = data.root.resolve()
    specs = {name: spec.resolved(root) for name in ("train", "validation", "test") if (spec := getattr(data, name))}
    return data.model_copy(update={"root": root, **specs})
