"""The model card that all tasks share."""

from __future__ import annotations

from regard.tasks.card import card, origin


class Scored:
    def lines(self) -> list[str]:
        return ["BLEU 30.00", "2 sentences"]


def test_every_part_has_its_place() -> None:
    training = {"parameters": 12345, "data": {"records": 6789, "train": "abc"}}
    about = origin("A decoder", training, "documents")
    assert about == (
        "A decoder with 12,345 parameters, trained with regard on 6,789 documents (prepared corpus sha256 `abc`)."
    )
    assert origin("A decoder", {}, "texts").endswith("regard on 0 texts (prepared corpus sha256 `unknown`).")
    assert card("Title", about, "regard look", [Scored(), Scored()], "It is small.") == (
        f"# Title\n\n{about}\n\n## Use\n\n```\nregard look\n```\n\n## Scores\n\n"
        "    BLEU 30.00\n    2 sentences\n\n    BLEU 30.00\n    2 sentences\n\n"
        "## Limits\n\nIt is small. The complete recipe stands in `config.json` under `training`.\n"
    )
    for evaluations, said in ((None, "Still in training: "), ([], "The recipe names no test set.")):
        assert f"## Scores\n\n{said}" in card("Title", about, "regard look", evaluations, "It is small.")
