"""The thalweg command on a terminal: usage terminal.py BINARY. Waits for what appears, never for time to pass."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

BINARY = sys.argv[1]
PATIENCE_S = 60
ENDLESS = "SELECT sum(value % 7) AS s FROM generate_series(1, 100000000000000)"


class Terminal:
    """A process whose standard streams, or only stderr, are a terminal of 100 columns."""

    def __init__(self, *args, only_stderr=False, **env):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        other = subprocess.DEVNULL if only_stderr else slave
        self.process = subprocess.Popen(
            [BINARY, *args],
            stdin=other,
            stdout=other,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", **env},
            start_new_session=True,
            preexec_fn=None if only_stderr else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""
        self.all = b""

    def expect(self, text):
        """Reads on until the text has appeared since the last one expected."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            try:
                chunk = os.read(self.master, 65536) if ready else b""
            except OSError:  # the other side is closed
                chunk = b""
            if not chunk:
                self.process.kill()
                raise AssertionError(f"waited for {text!r}, saw {self.all[-3000:]!r}")
            self.all += chunk
            self.seen += chunk.decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def send(self, text):
        os.write(self.master, text.encode())

    def ended(self):
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def shell(state):
    t = Terminal("sql", XDG_STATE_HOME=state)
    t.expect("thalweg> ")
    # Ctrl-C at the prompt clears the line.
    t.send("SELECT garbage")
    t.expect("garbage")
    t.send("\x03")
    t.expect("thalweg> ")
    t.send("SELECT 40 +\r2 AS answer;\r")
    t.expect("     42 │")
    t.expect("1 row in ")
    t.expect("thalweg> ")
    # Errors do not end the shell.
    t.send("SELECT missing FROM nowhere;\r")
    t.expect("error: ")
    t.expect("thalweg> ")
    # Ctrl-C during a query cancels the query, not the shell.
    t.send(ENDLESS + ";\r")
    t.expect("(Ctrl-C cancels)")
    t.send("\x03")
    t.expect("cancelled")
    t.expect("thalweg> ")
    t.send("SELECT 7 * 11 AS alive;\r")
    t.expect("    77 │")
    t.expect("thalweg> ")
    # Tab completes a keyword; a wide result fits the terminal.
    t.send("SELEC\t repeat('x', 500) AS wide;\r")
    t.expect("x… │")
    t.expect("thalweg> ")
    # What is typed or pasted ahead is kept.
    t.send("SELECT 100 + 1 AS one;\rSELECT 100 + 2 AS two;\rSELECT 100 + 3 AS three;\r")
    for answer in [" 101 │", " 102 │", " 103 │"]:
        t.expect(answer)
    t.expect("thalweg> ")
    # The limit, the formats, and leaving.
    t.send("\\set limit 2\r")
    t.expect("limit 2 rows")
    t.expect("thalweg> ")
    t.send("SELECT value AS v FROM generate_series(1, 100000);\r")
    t.expect("2 rows in ")
    t.expect("there are more")
    t.expect("thalweg> ")
    t.send("\\format json\r")
    t.expect("format json\r\n")
    t.expect("thalweg> ")
    t.send("SELECT 5 AS five;\r")
    t.expect('{"five":5}')
    t.expect("thalweg> ")
    t.send("\\q\r")
    assert t.ended() == 0
    with open(os.path.join(state, "thalweg", "history")) as history:
        assert "alive" in history.read()


def shell_ends(state):
    t = Terminal("sql", XDG_STATE_HOME=state)
    t.expect("thalweg> ")
    t.send("\x04")
    assert t.ended() == 0

    t = Terminal("sql", XDG_STATE_HOME=state)
    t.expect("thalweg> ")
    t.send("quit\r")
    assert t.ended() == 0

    # Termination at the prompt leaves the terminal as it was.
    t = Terminal("sql", XDG_STATE_HOME=state)
    before = termios.tcgetattr(t.master)[3]
    t.expect("thalweg> ")
    t.process.send_signal(signal.SIGTERM)
    assert t.ended() == 143
    assert termios.tcgetattr(t.master)[3] & termios.ICANON == before & termios.ICANON

    # Termination during a query cancels it first.
    t = Terminal("sql", XDG_STATE_HOME=state)
    t.expect("thalweg> ")
    t.send(ENDLESS + ";\r")
    t.expect("(Ctrl-C cancels)")
    t.process.send_signal(signal.SIGTERM)
    assert t.ended() == 143


def shell_without_home():
    t = Terminal("sql", XDG_STATE_HOME="", HOME="")
    t.expect("thalweg> ")
    t.send("SELECT 6 * 7 AS answer;\r")
    t.expect("     42 │")
    t.expect("thalweg> ")
    t.send("exit;\r")
    assert t.ended() == 0


def run(folder):
    script = os.path.join(folder, "endless.sql")
    with open(script, "w") as file:
        file.write(ENDLESS + ";\nSELECT 'never';")
    for number, code in [(signal.SIGINT, 130), (signal.SIGTERM, 143)]:
        t = Terminal("run", script, only_stderr=True)
        t.expect("(Ctrl-C cancels)")
        t.process.send_signal(number)
        t.expect("error: interrupted")
        assert t.ended() == code, t.process.returncode

    # Arrow is not for terminals.
    t = Terminal("sql", "--format", "arrow", "-c", "SELECT 1")
    t.expect("error: --format arrow")
    assert t.ended() == 2


with tempfile.TemporaryDirectory() as folder:
    shell(folder)
    shell_ends(folder)
    shell_without_home()
    run(folder)
