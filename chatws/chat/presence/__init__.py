"""Which agents are online: on this node (`local`), and on any node (`cluster`)."""
