"""Benchmarks on other machines: OpenSSH or adb carry the bundle there, and the package installed there runs it.

`target` reads `--on`; `ssh` and `adb` say how one command is run there; `shell` runs it; `host` looks at what is there;
`copy` brings what has changed; `bench` measures on one host, `fleet` on several side by side.
"""
