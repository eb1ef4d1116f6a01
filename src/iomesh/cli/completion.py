"""`iomesh completion`: the shell script that completes commands, options, and names of volumes and devices."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  iomesh completion bash > ~/.local/share/bash-completion/completions/iomesh
    zsh:   iomesh completion zsh > "${fpath[1]}/_iomesh"
    fish:  iomesh completion fish > ~/.config/fish/completions/iomesh.fish
    """
    from iomesh.cli.main import iomesh

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(iomesh, {}, "iomesh", "_IOMESH_COMPLETE").source())
