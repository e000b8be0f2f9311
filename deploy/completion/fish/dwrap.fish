# fish completion of dwrap: its own options, then the command's own completion.
complete --command dwrap --condition __fish_is_first_token --exclusive --short-option H --description 'Use this distributor'
complete --command dwrap --condition __fish_is_first_token --long-option explain --description 'Say where the command would run, and why'
complete --command dwrap --condition __fish_is_first_token --long-option help --description 'Print a summary'
complete --command dwrap --condition __fish_is_first_token --long-option version --description 'Print the version'
complete --command dwrap --no-files --arguments '(__fish_complete_subcommand -- -H)'
