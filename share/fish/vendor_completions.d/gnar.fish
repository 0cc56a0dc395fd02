# Completion of gnar's words for fish, made by: gnar completion fish

# Prints the words between gnar and the cursor, without the word at the cursor.
function __gnar_words
    set -l words (commandline -opc)
    while set -q words[1]; and string match -q '*=*' -- $words[1]
        set -e words[1] # a variable in front of the command
    end
    test (count $words) -lt 2; or printf '%s\n' $words[2..-1]
end

# Tells whether the arguments are all the words so far.
function __gnar_is
    set -l words (__gnar_words)
    test "$words" = "$argv"
end

# Tells whether an option can come now, given the command, the option's kind and all its names: the
# option is not given yet, or the cursor is at the option's value.
function __gnar_wants -a command kind
    set -l words (__gnar_words)
    test "$words[1]" = $command; or return 1
    test $kind = value; and contains -- "$words[-1]" $argv[3..-1]; and return 0
    for name in $argv[3..-1]
        not string match -q -- "$name" $words; and not string match -q -- "$name=*" $words; or return 1
    end
end

for name in gnar gnar.pyz
    complete -c $name -f
    complete -c $name -n __gnar_is -a server -d 'on the host with the public address: takes clients and their users'
    complete -c $name -n __gnar_is -a client -d 'beside the service: makes it reachable at the server'
    complete -c $name -n __gnar_is -a relay -d 'forwards one address to another, instead of socat'
    complete -c $name -n __gnar_is -a demo -d 'shows the tunnel working, on this machine alone'
    complete -c $name -n __gnar_is -a health -d 'tells by its exit status whether a server answers'
    complete -c $name -n __gnar_is -a top -d 'shows what a server does, in place'
    complete -c $name -n __gnar_is -a completion -d 'prints what makes a shell complete gnar\'s words'
    complete -c $name -n __gnar_is -a man -d 'prints the manual page'
    complete -c $name -n __gnar_is -l help
    complete -c $name -n __gnar_is -l version
    complete -c $name -n '__gnar_is --version' -l verbose
    complete -c $name -n '__gnar_wants server value -p --port' -s p -l port -x -d 'control port, where clients come (default 8910)'
    complete -c $name -n '__gnar_wants server value -t --token' -s t -l token -x -d 'let in only clients that know it; better set as GNAR_TOKEN'
    complete -c $name -n '__gnar_wants server value --token-file' -l token-file -rF -d 'read the token from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants server value --auth' -l auth -xa 'any hmac' -d 'any|hmac (default any); hmac refuses md5 logins, so Go clients'
    complete -c $name -n '__gnar_wants server value --bind' -l bind -x -d 'listen on this address alone (default: all, IPv4 and IPv6)'
    complete -c $name -n '__gnar_wants server value --udp-bind' -l udp-bind -x -d 'send and receive UDP on this address'
    complete -c $name -n '__gnar_wants server value --allow-ports' -l allow-ports -x -d 'ports that clients may open, such as 9000-9100,9200 (default: all)'
    complete -c $name -n '__gnar_wants server value --max-proxies' -l max-proxies -x -d 'ports that one client may have (default 4096)'
    complete -c $name -n '__gnar_wants server value --max-speed' -l max-speed -x -d 'limit of every proxy, such as 10mb (per second, each direction)'
    complete -c $name -n '__gnar_wants server value --max-users' -l max-users -x -d 'users of all proxies at the same time (default: no limit)'
    complete -c $name -n '__gnar_wants server value --max-users-per-address' -l max-users-per-address -x -d 'the same, of one address (default: no limit)'
    complete -c $name -n '__gnar_wants server value --idle-timeout' -l idle-timeout -x -d 'end of a user of TCP without bytes (default: never)'
    complete -c $name -n '__gnar_wants server value --max-memory' -l max-memory -x -d 'such as 256mb (default: half of what container or machine has)'
    complete -c $name -n '__gnar_wants server value --heartbeat' -l heartbeat -x -d 'between two signs of life of an idle connection (default 5)'
    complete -c $name -n '__gnar_wants server value --dead-after' -l dead-after -x -d 'give up a peer that should answer, and is silent (default 120)'
    complete -c $name -n '__gnar_wants server value --half-close-timeout' -l half-close-timeout -x -d 'end of a user half of whose connection has ended, when the other half is silent (default 3600)'
    complete -c $name -n '__gnar_wants server value --grace' -l grace -x -d 'how long users may finish when the server stops (default 8)'
    complete -c $name -n '__gnar_wants server value -a --admin-port' -s a -l admin-port -x -d 'serve panel, API and metrics on this port of loopback (default: off)'
    complete -c $name -n '__gnar_wants server value --admin-bind' -l admin-bind -x -d 'serve them on this address; beyond loopback a password is needed'
    complete -c $name -n '__gnar_wants server value --admin-password' -l admin-password -x -d 'lets see and change everything; better set as GNAR_ADMIN_PASSWORD'
    complete -c $name -n '__gnar_wants server value --admin-password-file' -l admin-password-file -rF -d 'read it from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants server value --admin-read-token' -l admin-read-token -x -d 'lets see everything; better set as GNAR_ADMIN_READ_TOKEN'
    complete -c $name -n '__gnar_wants server value --admin-read-token-file' -l admin-read-token-file -rF -d 'read it from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants server value --state-dir' -l state-dir -x -d 'keep the panel\'s history of the last day in this folder'
    complete -c $name -n '__gnar_wants server value -D --domain' -s D -l domain -x -d 'clients may have names under it, such as blog.example.com'
    complete -c $name -n '__gnar_wants server value --http-port' -l http-port -x -d 'where users of names come (default 80; 8080 behind Caddy), or off'
    complete -c $name -n '__gnar_wants server value --http-bind' -l http-bind -x -d 'listen for them there (default: --bind; loopback behind Caddy)'
    complete -c $name -n '__gnar_wants server value --https-port' -l https-port -x -d 'where they come with TLS (default: off; 443 with --tls-cert)'
    complete -c $name -n '__gnar_wants server value --tls-cert' -l tls-cert -x -d 'certificates for names, such as wildcard.pem or one.pem,two.pem'
    complete -c $name -n '__gnar_wants server value --tls-key' -l tls-key -x -d 'their keys, unless the same files have them'
    complete -c $name -n '__gnar_wants server value --hsts' -l hsts -x -d 'for which browsers are to use HTTPS alone (default: nothing is said)'
    complete -c $name -n '__gnar_wants server value --allow-hosts' -l allow-hosts -x -d 'whole host names that clients may have, such as *.customer.org'
    complete -c $name -n '__gnar_wants server value --reserved-names' -l reserved-names -x -d 'labels that nobody gets under the domain (default: such as admin)'
    complete -c $name -n '__gnar_wants server value --trust-forwarded' -l trust-forwarded -x -d 'whose X-Forwarded-For is believed, or none (default: loopback)'
    complete -c $name -n '__gnar_wants server value --caddy-api' -l caddy-api -x -d 'a Caddy in front that gnar sees to, such as http://127.0.0.1:2019'
    complete -c $name -n '__gnar_wants server value -s --caddy-srv-name' -s s -l caddy-srv-name -x -d 'which of its servers (default srv0)'
    complete -c $name -n '__gnar_wants server switch --caddy-remove' -l caddy-remove -d 'remove the route from Caddy when this server stops'
    complete -c $name -n '__gnar_wants server value --error-page' -l error-page -rF -d 'HTML for answers that the server makes by itself, such as 404'
    complete -c $name -n '__gnar_wants server value --log-format' -l log-format -xa 'json text' -d 'json|text (default text)'
    complete -c $name -n '__gnar_wants server value --log-level' -l log-level -xa 'debug info warning error' -d 'debug|info|warning|error (default info)'
    complete -c $name -n '__gnar_wants server switch --replace' -l replace -d 'take over from the server that runs, refusing no user'
    complete -c $name -n '__gnar_wants server switch --check' -l check -d 'say what is right and wrong with settings and machine, and end'
    complete -c $name -n '__gnar_wants server value -c --config' -s c -l config -rF -d 'read settings from a TOML file; flags win'
    complete -c $name -n '__gnar_wants server switch -h --help' -s h -l help -d 'show this'
    complete -c $name -n '__gnar_wants client value -s --server-addr' -s s -l server-addr -x -d 'the server (default localhost:8910)'
    complete -c $name -n '__gnar_wants client value -l --local-port' -s l -l local-port -x -d 'port of the local service'
    complete -c $name -n '__gnar_wants client value -r --remote-port' -s r -l remote-port -x -d 'port at the server (default 0: the server chooses)'
    complete -c $name -n '__gnar_wants client value --local-host' -l local-host -x -d 'where the local service is (default 127.0.0.1, or ::1)'
    complete -c $name -n '__gnar_wants client value -n --proxy-name' -s n -l proxy-name -x -d 'name in logs and listings (default: such as tcp-3000)'
    complete -c $name -n '__gnar_wants client value -y --proxy-type' -s y -l proxy-type -xa 'tcp udp http https' -d 'tcp|udp|http|https (default: http with a name and no port, else tcp)'
    complete -c $name -n '__gnar_wants client value -d --subdomain' -s d -l subdomain -x -d 'name under the server\'s domain, or a whole one; "": the server chooses'
    complete -c $name -n '__gnar_wants client value --path' -l path -x -d 'take the requests of that name whose path begins so, such as /api'
    complete -c $name -n '__gnar_wants client value -t --token' -s t -l token -x -d 'the server\'s token; better set as GNAR_TOKEN'
    complete -c $name -n '__gnar_wants client value --token-file' -l token-file -rF -d 'read the token from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants client value --auth' -l auth -xa 'hmac md5' -d 'hmac|md5 (default hmac); md5 is for a Go server'
    complete -c $name -n '__gnar_wants client switch -m --multiplex' -s m -l multiplex -d 'use one connection to the server for everything'
    complete -c $name -n '__gnar_wants client value --speed-limit' -l speed-limit -x -d 'limit of the proxy, such as 100kb (per second, each direction)'
    complete -c $name -n '__gnar_wants client value --udp-timeout' -l udp-timeout -x -d 'end of a UDP session without datagrams (default 60)'
    complete -c $name -n '__gnar_wants client switch --udp-any-source' -l udp-any-source -d 'let answers from other addresses of a UDP service through'
    complete -c $name -n '__gnar_wants client value --max-users' -l max-users -x -d 'users of the proxy at the same time (default: no limit)'
    complete -c $name -n '__gnar_wants client value --max-users-per-address' -l max-users-per-address -x -d 'the same, of one address (default: no limit)'
    complete -c $name -n '__gnar_wants client value --idle-timeout' -l idle-timeout -x -d 'end of a user of TCP without bytes (default: never)'
    complete -c $name -n '__gnar_wants client value --allow-from' -l allow-from -x -d 'let in users of these networks alone, such as 10.0.0.0/8'
    complete -c $name -n '__gnar_wants client value --deny-from' -l deny-from -x -d 'let in no users of these networks'
    complete -c $name -n '__gnar_wants client value --host-header' -l host-header -x -d 'what the service sees as Host; local for its own host and port'
    complete -c $name -n '__gnar_wants client value --request-headers' -l request-headers -x -d 'set a header field ("X-A: b"), or remove one ("-X-A")'
    complete -c $name -n '__gnar_wants client value --response-headers' -l response-headers -x -d 'the same, in what the service answers'
    complete -c $name -n '__gnar_wants client value --basic-auth' -l basic-auth -x -d 'let in whoever knows this user:password (or user:hash)'
    complete -c $name -n '__gnar_wants client switch --redirect-https' -l redirect-https -d 'send users without TLS to https://'
    complete -c $name -n '__gnar_wants client value --error-page' -l error-page -rF -d 'HTML for answers that the server makes by itself, such as 503'
    complete -c $name -n '__gnar_wants client value --heartbeat' -l heartbeat -x -d 'between two signs of life of an idle connection (default 5)'
    complete -c $name -n '__gnar_wants client value --dead-after' -l dead-after -x -d 'give up a peer that should answer, and is silent (default 120)'
    complete -c $name -n '__gnar_wants client value --half-close-timeout' -l half-close-timeout -x -d 'end of a user half of whose connection has ended, when the other half is silent (default 3600)'
    complete -c $name -n '__gnar_wants client value --grace' -l grace -x -d 'how long users may finish when the client stops (default 8)'
    complete -c $name -n '__gnar_wants client switch --plain' -l plain -d 'write lines to a terminal, too, in place of the live view'
    complete -c $name -n '__gnar_wants client value --inspect' -l inspect -x -d 'show requests and answers on a page there; on is 127.0.0.1:4040'
    complete -c $name -n '__gnar_wants client value --inspect-bodies' -l inspect-bodies -x -d 'how much of each body that page has (default 64kb); 0 for none'
    complete -c $name -n '__gnar_wants client value --inspect-log' -l inspect-log -rF -d 'append a line of JSON for each request, without secrets of headers'
    complete -c $name -n '__gnar_wants client value -a --admin-port' -s a -l admin-port -x -d 'serve metrics on this port of loopback (default: off)'
    complete -c $name -n '__gnar_wants client value --admin-bind' -l admin-bind -x -d 'serve them on this address; beyond loopback a password is needed'
    complete -c $name -n '__gnar_wants client value --admin-password' -l admin-password -x -d 'asked for there; better set as GNAR_ADMIN_PASSWORD'
    complete -c $name -n '__gnar_wants client value --admin-password-file' -l admin-password-file -rF -d 'read it from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants client value --admin-read-token' -l admin-read-token -x -d 'does the same; better set as GNAR_ADMIN_READ_TOKEN'
    complete -c $name -n '__gnar_wants client value --admin-read-token-file' -l admin-read-token-file -rF -d 'read it from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants client value --log-format' -l log-format -xa 'json text' -d 'json|text (default text)'
    complete -c $name -n '__gnar_wants client value --log-level' -l log-level -xa 'debug info warning error' -d 'debug|info|warning|error (default info)'
    complete -c $name -n '__gnar_wants client switch --check' -l check -d 'say what is right and wrong with settings, server and services, end'
    complete -c $name -n '__gnar_wants client value -c --config' -s c -l config -rF -d 'read settings and [[proxys]] from a TOML file; flags win'
    complete -c $name -n '__gnar_wants client switch -h --help' -s h -l help -d 'show this'
    complete -c $name -n '__gnar_wants relay value --udp-timeout' -l udp-timeout -x -d 'end of a user\'s UDP session without datagrams (default 60)'
    complete -c $name -n '__gnar_wants relay switch --udp-any-source' -l udp-any-source -d 'let answers from other addresses of a UDP target through'
    complete -c $name -n '__gnar_wants relay value --dead-after' -l dead-after -x -d 'give up a peer that should answer, and is silent (default 120)'
    complete -c $name -n '__gnar_wants relay value --half-close-timeout' -l half-close-timeout -x -d 'end of a connection half of which has ended, when the other half is silent (default 3600)'
    complete -c $name -n '__gnar_wants relay value --grace' -l grace -x -d 'how long connections may finish when the relay stops (default 8)'
    complete -c $name -n '__gnar_wants relay value -a --admin-port' -s a -l admin-port -x -d 'serve metrics on this port of loopback (default: off)'
    complete -c $name -n '__gnar_wants relay value --admin-bind' -l admin-bind -x -d 'serve them on this address; beyond loopback a password is needed'
    complete -c $name -n '__gnar_wants relay value --admin-password' -l admin-password -x -d 'asked for there; better set as GNAR_ADMIN_PASSWORD'
    complete -c $name -n '__gnar_wants relay value --admin-password-file' -l admin-password-file -rF -d 'read it from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants relay value --admin-read-token' -l admin-read-token -x -d 'does the same; better set as GNAR_ADMIN_READ_TOKEN'
    complete -c $name -n '__gnar_wants relay value --admin-read-token-file' -l admin-read-token-file -rF -d 'read it from a file, which holds nothing else'
    complete -c $name -n '__gnar_wants relay value --log-format' -l log-format -xa 'json text' -d 'json|text (default text)'
    complete -c $name -n '__gnar_wants relay value --log-level' -l log-level -xa 'debug info warning error' -d 'debug|info|warning|error (default info)'
    complete -c $name -n '__gnar_wants relay switch -h --help' -s h -l help -d 'show this'
    complete -c $name -n '__gnar_wants demo value --log-format' -l log-format -xa 'json text' -d 'json|text (default text)'
    complete -c $name -n '__gnar_wants demo value --log-level' -l log-level -xa 'debug info warning error' -d 'debug|info|warning|error (default info)'
    complete -c $name -n '__gnar_wants demo switch -h --help' -s h -l help -d 'show this'
    complete -c $name -n '__gnar_wants health value -p --port' -s p -l port -x -d 'control port, as the server was told (default 8910)'
    complete -c $name -n '__gnar_wants health value --bind' -l bind -x -d 'address that the server listens on, as it was told (default: all)'
    complete -c $name -n '__gnar_wants health value -c --config' -s c -l config -rF -d 'read these two from the server\'s own file'
    complete -c $name -n '__gnar_wants health value --timeout' -l timeout -x -d 'how long the answer may take (default 3)'
    complete -c $name -n '__gnar_wants health value --log-format' -l log-format -xa 'json text' -d 'json|text (default text)'
    complete -c $name -n '__gnar_wants health value --log-level' -l log-level -xa 'debug info warning error' -d 'debug|info|warning|error (default info)'
    complete -c $name -n '__gnar_wants health switch -h --help' -s h -l help -d 'show this'
    complete -c $name -n '__gnar_wants top switch --once' -l once -d 'print everything once, as text; so it does where there is no terminal'
    complete -c $name -n '__gnar_wants top value --token-file' -l token-file -rF -d 'read the password, or the read token, from a file'
    complete -c $name -n '__gnar_wants top value --log-format' -l log-format -xa 'json text' -d 'json|text (default text)'
    complete -c $name -n '__gnar_wants top value --log-level' -l log-level -xa 'debug info warning error' -d 'debug|info|warning|error (default info)'
    complete -c $name -n '__gnar_wants top switch -h --help' -s h -l help -d 'show this'
    complete -c $name -n '__gnar_is completion' -a 'bash zsh fish'
    complete -c $name -n '__gnar_wants completion switch -h --help' -s h -l help -d 'show this'
    complete -c $name -n '__gnar_wants man switch -h --help' -s h -l help -d 'show this'
end
