"""The directive `commands`: what `lpfs --help` and the help of every command say."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.parsers.rst import Directive
from typer.main import get_command

from lpfs.cli import app


def term(names: str, text: str) -> nodes.definition_list_item:
    # Options in the text are code too, or their two dashes would become a longer one.
    parts = re.split(r"(--[a-z][a-z-]*)", text)
    words = [nodes.literal("", p) if p.startswith("--") else nodes.Text(p) for p in parts]
    return nodes.definition_list_item(
        "",
        nodes.term("", "", nodes.literal("", names)),
        nodes.definition("", nodes.paragraph("", "", *words)),
    )


class Commands(Directive):
    """A section a command: its usage, and its arguments and options with their defaults."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        group = get_command(app)
        for name, command in sorted(group.commands.items()):
            section = nodes.section("", nodes.title("", name), ids=[f"lpfs-{name}"])
            context = command.make_context(name, [], resilient_parsing=True)
            usage = " ".join(["lpfs", name, *command.collect_usage_pieces(context)])
            section += nodes.paragraph("", command.help)
            section += nodes.literal_block(usage, usage, language="text")
            entries = nodes.definition_list()
            for parameter in command.params:
                entry = parameter.get_help_record(context)
                if entry is not None:
                    entries += term(*entry)
            section += entries
            sections.append(section)
        return sections
