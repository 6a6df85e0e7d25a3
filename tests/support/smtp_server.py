"""A real SMTP server, aiosmtpd, that a test steers and reads line by line.

Out: `port N`, then each message that it has taken, as one line of JSON, `holds RECIPIENT` for each that it
does not answer for now, `quit` for each client that says so, and `obeys COMMAND`.
In, and as the first argument: `hold` (answer no message for now), `take` (take them, those held
first) or `refuse` (answer them with a 550). It ends when its input does.
"""

import asyncio
import json
import sys

from aiosmtpd.smtp import SMTP


class Recorder:
    def __init__(self):
        self.open = asyncio.Event()
        self.obey(sys.argv[1])

    def obey(self, command):
        self.answer = command
        if command == "hold":
            self.open.clear()
        else:
            self.open.set()

    async def handle_DATA(self, server, session, envelope):
        if not self.open.is_set():
            print("holds", *envelope.rcpt_tos, flush=True)
        await self.open.wait()
        if self.answer == "refuse":
            return "550 5.7.1 refused"
        message = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "text": envelope.content.decode("utf-8", "replace"),
        }
        print(json.dumps(message), flush=True)
        return "250 2.0.0 taken"

    async def handle_QUIT(self, server, session, envelope):
        print("quit", flush=True)
        return "221 Bye"


async def main():
    loop = asyncio.get_running_loop()
    recorder = Recorder()
    server = await loop.create_server(lambda: SMTP(recorder, hostname="localhost"), "127.0.0.1", 0)
    print("port", server.sockets[0].getsockname()[1], flush=True)

    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        recorder.obey(line.decode().strip())
        print("obeys", line.decode().strip(), flush=True)


asyncio.run(main())
