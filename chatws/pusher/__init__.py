"""Parts of Pusher's protocol.

`signatures` makes and verifies what applications and servers sign. The server does not speak the protocol yet, so
nothing else imports this package.
"""
