<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Tells chatws what has happened, so that the browsers get to know.
 *
 * No method throws, and all together hold a request up for no longer than the budget (Config). A method that returns a
 * bool returns true when the server has acknowledged, and false after it has logged why not; with a spool what could
 * not be delivered is then kept, and sent by the next call, of this request or another. Do not repeat such a call
 * yourself, or give it a key of its own to be repeated with.
 *
 * An idempotency key (`$key`) names one notification: a second one with the same key within 10 minutes is acknowledged
 * and not sent again. Where none is given a random one is made, so that a retry never shows anything twice.
 */
final class Client
{
    /** As many ids one line may name. */
    private const MAX_USER_IDS = 10_000;
    /** A batch goes out in pieces of this size. */
    private const BATCH_LINES = 500;
    private const BATCH_BYTES = 512 * 1024;

    private readonly Config $config;
    private readonly Log $log;
    private readonly Courier $courier;
    /** @var list<Line>|null the lines of the batch under way */
    private ?array $batch = null;
    /** Why not everything in the batch under way could be made into lines. */
    private ?string $batchProblem = null;

    /** @param Config|null $config null: from the environment */
    public function __construct(?Config $config = null)
    {
        $this->config = $config ?? Config::fromEnv();
        $this->log = new Log($this->config->logger);
        $this->courier = new Courier($this->config, $this->log);
        foreach ($this->config->problems as $problem) {
            $this->log->warning($problem);
        }
    }

    /**
     * A message was written: the conversation's subscribers get `new_message`.
     *
     * @param array<string, mixed> $message id, content, sender_type, sender_id, created_at …
     */
    public function notifyNewMessage(int|string $conversationId, array $message, ?string $key = null): bool
    {
        return $this->publish(
            'new_message',
            ['conversation_id' => $conversationId, 'message' => Json::object($message)],
            key: $key,
        );
    }

    /**
     * A conversation is another now: everybody's list gets `conversation_updated`.
     *
     * @param array<string, mixed> $conversation
     */
    public function notifyConversationUpdated(
        int|string $conversationId,
        array $conversation,
        ?string $key = null,
    ): bool {
        return $this->publish(
            'conversation_updated',
            ['conversation_id' => $conversationId, 'conversation' => Json::object($conversation)],
            key: $key,
        );
    }

    /**
     * A conversation has begun: everybody's list gets `new_conversation`.
     *
     * @param array<string, mixed> $conversation id, contact_name, status …
     */
    public function notifyNewConversation(array $conversation, ?string $key = null): bool
    {
        return $this->publish('new_conversation', ['conversation' => Json::object($conversation)], key: $key);
    }

    /** An agent is `away`, say: everybody gets `agent_status`. `online` and `offline` the server tells by itself. */
    public function notifyAgentStatus(int|string $agentId, string $status): bool
    {
        return $this->publish('agent_status', ['agent_id' => $agentId, 'status' => $status]);
    }

    /** Somebody types, or stopped: the conversation's subscribers but that user get `typing`. Never spooled. */
    public function notifyTyping(int|string $conversationId, int|string $userId, bool $isTyping): bool
    {
        $data = ['conversation_id' => $conversationId, 'user_id' => $userId, 'is_typing' => $isTyping];

        return $this->publish('typing', $data);
    }

    /** A message was read: the conversation's subscribers get `message_read`. */
    public function notifyMessageRead(int|string $conversationId, int|string $messageId, int|string $userId): bool
    {
        $data = ['conversation_id' => $conversationId, 'message_id' => $messageId, 'user_id' => $userId];

        return $this->publish('message_read', $data);
    }

    /** A message was delivered, say: the conversation's subscribers get `message_status_updated`. */
    public function notifyMessageStatusUpdated(int|string $conversationId, int|string $messageId, string $status): bool
    {
        $data = ['conversation_id' => $conversationId, 'message_id' => $messageId, 'status' => $status];

        return $this->publish('message_status_updated', $data);
    }

    /**
     * An event for one user: every connection of theirs gets it.
     *
     * @param array<array-key, mixed> $data
     */
    public function notifyUser(int|string $userId, string $event, array $data, ?string $key = null): bool
    {
        return $this->publish($event, $data, ['user_id' => $userId], key: $key);
    }

    /**
     * An event for everyone, for some, or for a conversation.
     *
     * @param array<array-key, mixed> $data
     * @param array<array-key, mixed>|null $targets null: everyone. A list: the users with these ids (an empty one is
     *     nobody, and then nothing is sent). Or by name, as on the wire: `['conversation_id' => 456]`,
     *     `['user_id' => 5]`, `['user_ids' => [5, 6]]`; each also with `'except_user_id' => 123`, which alone means
     *     everyone but that user.
     */
    public function broadcast(string $event, array $data, ?array $targets = null, ?string $key = null): bool
    {
        $except = null;
        if ($targets !== null && !array_is_list($targets)) {
            $except = $targets['except_user_id'] ?? null;
            unset($targets['except_user_id']);
            if ($targets === []) {
                $targets = null;
            } elseif (\count($targets) === 1 && \is_array($targets['user_ids'] ?? null)) {
                $targets = array_values($targets['user_ids']);
            }
        }
        if ($except !== null && !\is_int($except) && !\is_string($except)) {
            $this->log->warning("{$event} not sent: except_user_id must be an id");

            return false;
        }
        if ($targets === null || !array_is_list($targets)) {
            return $this->publish($event, $data, $targets ?? 'everyone', $except, $key);
        }
        $lines = [];
        foreach (array_chunk($targets, self::MAX_USER_IDS) as $at => $userIds) {
            $part = $key === null || $at === 0 ? $key : "{$key}#{$at}";
            $lines[] = fn (): Line => Line::event($event, $data, ['user_ids' => $userIds], $except, $part);
        }

        return $this->sendAll($event, $lines);
    }

    /**
     * Any event, to any audience.
     *
     * @param array<array-key, mixed> $data always an object in the browser; an empty array becomes `{}`. Of what stands
     *     deeper in it an empty array becomes `[]`: write `new \stdClass()` where the page expects `{}`.
     * @param array<string, mixed>|string|null $to `['conversation_id' => 456]`, `['user_id' => 5]`,
     *     `['user_ids' => [5, 6]]`, `'everyone'`; null: the event's default audience
     * @param int|string|null $exceptUserId whose connections do not get it
     * @param bool $transient not for those who are away: neither kept for recovery nor spooled
     */
    public function publish(
        string $event,
        array $data,
        array|string|null $to = null,
        int|string|null $exceptUserId = null,
        ?string $key = null,
        bool $transient = false,
    ): bool {
        return $this->sendAll(
            $event,
            [static fn (): Line => Line::event($event, $data, $to, $exceptUserId, $key, $transient)],
        );
    }

    /**
     * Sends what the callable notifies of in one go, which takes about as long as a single notification.
     *
     * Inside, each method returns whether its line could be made; operations that ask something (`onlineAgents`) do not
     * wait for their turn. What the callable throws is thrown on, after what it had said until then is sent.
     *
     * @param callable(self): mixed $do
     * @return bool whether everything was acknowledged
     */
    public function batch(callable $do): bool
    {
        if ($this->batch !== null) {
            $do($this);

            return true;
        }
        $this->batch = [];
        $this->batchProblem = null;
        $sent = false;
        try {
            $do($this);
        } finally {
            $lines = $this->batch;
            $this->batch = null;
            $sent = $this->guard('batch', fn (): bool => $this->deliver($lines), false);
        }

        $this->log->last ??= $this->batchProblem;

        return $sent && $this->batchProblem === null;
    }

    /**
     * Closes the user's connections, after they have logged out, say.
     *
     * @param bool $ban tell the browsers not to come back; without, they reconnect and are asked anew who they are
     */
    public function disconnectUser(int|string $userId, string $reason = '', bool $ban = false): bool
    {
        $fields = ['user_id' => $userId, 'reason' => $reason, 'ban' => $ban];

        return $this->sendAll('disconnect', [static fn (): Line => Line::operation('disconnect', $fields)]);
    }

    /** Takes a conversation away from the user's connections, after they have lost the right to it. */
    public function unsubscribeUser(int|string $userId, int|string $conversationId): bool
    {
        $fields = ['user_id' => $userId, 'conversation_id' => $conversationId];

        return $this->sendAll('unsubscribe', [static fn (): Line => Line::operation('unsubscribe', $fields)]);
    }

    /**
     * The ids of the agents who are online, sorted.
     *
     * @return list<int|string> empty also when it cannot be told; lastError() says whether that is so
     */
    public function onlineAgents(): array
    {
        return $this->guard('presence', function (): array {
            $answer = $this->courier->send([Line::operation('presence')])[0] ?? [];
            $online = $answer['online'] ?? null;

            return \is_array($online) ? array_values($online) : [];
        }, []);
    }

    /** Whether the server is there and takes the secret. */
    public function ping(): bool
    {
        return $this->guard('ping', fn (): bool => $this->deliver([Line::operation('ping')]), false);
    }

    /**
     * A ticket that proves to the server who a browser is; the page hands it over as `token`. It is made here: nobody
     * is asked. Let it live for a few minutes, and let the page fetch another when it reconnects.
     *
     * @param int $ttl seconds
     * @param list<int|string>|null $conversations the only ones that the page may subscribe to; null: all that the
     *     application allows
     * @return string|false false when there is no secret to sign with
     */
    public function ticket(int|string $userId, int $ttl = 300, ?array $conversations = null): string|false
    {
        return $this->guard('ticket', function () use ($userId, $ttl, $conversations): string|false {
            if ($this->config->ticketSecret === null) {
                $this->log->warning('no ticket: there is no secret (CHATWS_SECRET or CHATWS_SECRET_FILE)');

                return false;
            }
            $audience = $this->config->ticketAudience;

            return Ticket::sign($this->config->ticketSecret, $userId, time(), $ttl, $conversations, $audience);
        }, false);
    }

    /**
     * Sends what waits in the spool, as every other call does by the way.
     *
     * @return int how many lines still wait there
     */
    public function flushSpool(): int
    {
        return $this->guard('spool', fn (): int => $this->courier->flush(), 0);
    }

    /** Why the last call has failed; null when it has not. */
    public function lastError(): ?string
    {
        return $this->log->last;
    }

    /** To be called where a process serves many requests by itself and each is to have its own budget. */
    public function beginRequest(): void
    {
        $this->courier->renew();
    }

    /** Closes the connection. The next call opens another. */
    public function close(): void
    {
        $this->courier->close();
    }

    /** @param list<\Closure(): Line> $lines */
    private function sendAll(string $what, array $lines): bool
    {
        return $this->guard($what, function () use ($what, $lines): bool {
            $made = [];
            foreach ($lines as $make) {
                $line = $make();
                $size = \strlen($line->json);
                if ($size > $this->config->maxLineSize) {
                    $this->log->warning(
                        "{$what} not sent: its line has {$size} bytes, more than {$this->config->maxLineSize}",
                    );
                    $this->batchProblem = $this->log->last;

                    return false;
                }
                $made[] = $line;
            }
            if ($this->batch === null) {
                return $this->deliver($made);
            }
            array_push($this->batch, ...$made);

            return true;
        }, false);
    }

    /** @param list<Line> $lines */
    private function deliver(array $lines): bool
    {
        $ok = true;
        $from = 0;
        $size = 0;
        foreach ($lines as $at => $line) {
            if ($at > $from && ($at - $from >= self::BATCH_LINES || $size + \strlen($line->json) > self::BATCH_BYTES)) {
                $ok = $this->exchange(\array_slice($lines, $from, $at - $from)) && $ok;
                $from = $at;
                $size = 0;
            }
            $size += \strlen($line->json);
        }

        return $lines === [] || ($this->exchange(\array_slice($lines, $from)) && $ok);
    }

    /** @param list<Line> $lines */
    private function exchange(array $lines): bool
    {
        $answers = $this->courier->send($lines);
        foreach (array_keys($lines) as $at) {
            if (($answers[$at]['ok'] ?? false) !== true) {
                return false;
            }
        }

        return true;
    }

    /**
     * @template T
     * @param callable(): T $do
     * @param T $otherwise
     * @return T
     */
    private function guard(string $what, callable $do, mixed $otherwise): mixed
    {
        $this->log->last = null;
        try {
            return $do();
        } catch (\Throwable $error) {
            $this->log->warning("{$what} not sent: {$error->getMessage()}");
            $this->batchProblem = $this->log->last;

            return $otherwise;
        }
    }
}
