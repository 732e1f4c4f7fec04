"""A bundle on another machine: OpenSSH or adb carry it there, and the package that is installed there runs it.

`target` reads `--on`; `ssh` and `adb` say how one command is run there; `shell` runs it; `host` looks at what is there;
`copy` brings what has changed; `bench` measures on one host, `fleet` on several side by side.
"""
