# fish completion of dwrapctl, dwrap-agent and dwrap-distributor: the program itself is asked what may follow (click's protocol: lines
# `KIND,VALUE<tab>HELP`, KIND one of plain, file, dir).
function __dwrap_click --argument-names program
    set -l ask _(string upper -- (string replace --all -- - _ $program))_COMPLETE
    for line in (env $ask=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) $program 2>/dev/null)
        set -l found (string split --max 1 -- , $line)
        switch $found[1]
            case dir
                __fish_complete_directories $found[2]
            case file
                __fish_complete_path $found[2]
            case plain
                echo $found[2]
        end
    end
end
for program in dwrapctl dwrap-agent dwrap-distributor
    complete --no-files --command $program --arguments "(__dwrap_click $program)"
end
