<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Publishes events to chatws and signs tokens for browsers.
 *
 * No method throws, and all calls of a request together block for no longer than the time budget (see Config). A method
 * that returns a bool returns true when the server has acknowledged the line, and otherwise logs the reason and returns
 * false. With a spool, the undelivered line is then stored and sent by the next call, of this request or another. Do
 * not repeat a failed call, unless you pass an idempotency key.
 *
 * An idempotency key (`$key`) identifies a notification: within 10 minutes the server acknowledges a second one with
 * the same key and does not deliver it. The default is a random key, so that a retry never delivers an event twice.
 */
final class Client
{
    /** The server's limit for the user ids of one line. */
    private const MAX_USER_IDS = 10_000;
    /** Limits of one exchange; a larger batch is split, so that a failure repeats less. */
    private const BATCH_LINES = 500;
    private const BATCH_BYTES = 512 * 1024;
    /** Loaded with the first client: PHP ends a process that has no file descriptor left to load a class. */
    private const PRELOADED = [
        ConnectionFailed::class,
        Deadline::class,
        ErrorSuppressor::class,
        Json::class,
        Line::class,
        Spool::class,
        Token::class,
    ];

    private readonly Config $config;
    private readonly Log $log;
    private readonly Sender $sender;
    /** @var list<Line>|null the lines of the current batch; null outside of batch() */
    private ?array $batch = null;
    /** Why a call inside the current batch failed. */
    private ?string $batchProblem = null;

    /** @param Config|null $config null: Config::fromEnv() */
    public function __construct(?Config $config = null)
    {
        $this->config = $config ?? Config::fromEnv();
        $this->log = new Log($this->config->logger);
        $this->sender = new Sender($this->config, $this->log);
        array_map('class_exists', self::PRELOADED);
        foreach ($this->config->problems as $problem) {
            $this->log->warning($problem);
        }
    }

    /**
     * Publishes `new_message` to the conversation's subscribers.
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
     * Publishes `conversation_updated` to all users.
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
     * Publishes `new_conversation` to all users.
     *
     * @param array<string, mixed> $conversation id, contact_name, status …
     */
    public function notifyNewConversation(array $conversation, ?string $key = null): bool
    {
        return $this->publish('new_conversation', ['conversation' => Json::object($conversation)], key: $key);
    }

    /** Publishes `agent_status`, such as `away`, to all users. The server itself publishes `online` and `offline`. */
    public function notifyAgentStatus(int|string $agentId, string $status): bool
    {
        return $this->publish('agent_status', ['agent_id' => $agentId, 'status' => $status]);
    }

    /** Publishes `typing` to the conversation's subscribers except that user. It is never spooled. */
    public function notifyTyping(int|string $conversationId, int|string $userId, bool $isTyping): bool
    {
        $data = ['conversation_id' => $conversationId, 'user_id' => $userId, 'is_typing' => $isTyping];

        return $this->publish('typing', $data);
    }

    /** Publishes `message_read` to the conversation's subscribers. */
    public function notifyMessageRead(int|string $conversationId, int|string $messageId, int|string $userId): bool
    {
        $data = ['conversation_id' => $conversationId, 'message_id' => $messageId, 'user_id' => $userId];

        return $this->publish('message_read', $data);
    }

    /** Publishes `message_status_updated` to the conversation's subscribers. */
    public function notifyMessageStatusUpdated(int|string $conversationId, int|string $messageId, string $status): bool
    {
        $data = ['conversation_id' => $conversationId, 'message_id' => $messageId, 'status' => $status];

        return $this->publish('message_status_updated', $data);
    }

    /**
     * Publishes an event to all connections of one user.
     *
     * @param array<array-key, mixed> $data
     */
    public function notifyUser(int|string $userId, string $event, array $data, ?string $key = null): bool
    {
        return $this->publish($event, $data, ['user_id' => $userId], key: $key);
    }

    /**
     * Publishes an event to everyone, to some users, or to a conversation.
     *
     * @param array<array-key, mixed> $data
     * @param array<array-key, mixed>|null $targets null: everyone. A list: the users with these ids; for an empty list
     *     nothing is sent. An array with names, as on the wire: `['conversation_id' => 456]`, `['user_id' => 5]`,
     *     `['user_ids' => [5, 6]]`. `'except_user_id' => 123` may be added; alone it means everyone except that user.
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
            $this->log->warning("{$event} not sent: except_user_id must be an integer or a string");

            return false;
        }
        if ($targets === null || !array_is_list($targets)) {
            return $this->publish($event, $data, $targets ?? 'everyone', $except, $key);
        }
        $lines = [];
        foreach (array_chunk($targets, self::MAX_USER_IDS) as $index => $userIds) {
            $partKey = $key === null || $index === 0 ? $key : "{$key}#{$index}";
            $lines[] = fn (): Line => Line::event($event, $data, ['user_ids' => $userIds], $except, $partKey);
        }

        return $this->sendAll($event, $lines);
    }

    /**
     * Publishes any event to any audience.
     *
     * @param array<array-key, mixed> $data always an object in the browser; an empty array becomes `{}`. An empty array
     *     inside it becomes `[]`: use `new \stdClass()` where the page expects `{}`.
     * @param array<string, mixed>|string|null $to `['conversation_id' => 456]`, `['user_id' => 5]`,
     *     `['user_ids' => [5, 6]]`, `'everyone'`; null: the event's default audience
     * @param int|string|null $exceptUserId the user whose connections do not receive it
     * @param bool $transient only for clients that are connected now: neither stored in the history nor spooled
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
     * Sends the notifications of a callable as one batch, in about the time of a single notification.
     *
     * Inside, each method returns whether its line is valid. Queries (`onlineAgents`, `ping`) are sent at once. An
     * exception of the callable is rethrown after the notifications before it were sent.
     *
     * @param callable(self): mixed $callable
     * @return bool whether the server has acknowledged all of them
     */
    public function batch(callable $callable): bool
    {
        if ($this->batch !== null) {
            $callable($this);

            return true;
        }
        $this->batch = [];
        $this->batchProblem = null;
        $sent = false;
        try {
            $callable($this);
        } finally {
            $lines = $this->batch;
            $this->batch = null;
            $sent = $this->guard('batch', fn (): bool => $this->deliver($lines), false);
        }

        $this->log->lastMessage ??= $this->batchProblem;

        return $sent && $this->batchProblem === null;
    }

    /**
     * Closes the user's connections, for example after a logout.
     *
     * @param bool $ban true: the browsers do not reconnect; false: they reconnect and authenticate again
     */
    public function disconnectUser(int|string $userId, string $reason = '', bool $ban = false): bool
    {
        $fields = ['user_id' => $userId, 'reason' => $reason, 'ban' => $ban];

        return $this->sendAll('disconnect', [static fn (): Line => Line::operation('disconnect', $fields)]);
    }

    /** Unsubscribes the user's connections from a conversation, for example after the user has lost access to it. */
    public function unsubscribeUser(int|string $userId, int|string $conversationId): bool
    {
        $fields = ['user_id' => $userId, 'conversation_id' => $conversationId];

        return $this->sendAll('unsubscribe', [static fn (): Line => Line::operation('unsubscribe', $fields)]);
    }

    /**
     * Returns the ids of the agents who are online, sorted.
     *
     * @return list<int|string> also empty if the query failed; lastError() is then not null
     */
    public function onlineAgents(): array
    {
        return $this->guard('presence', function (): array {
            $response = $this->sender->send([Line::operation('presence')])[0] ?? [];
            $online = $response['online'] ?? null;

            return \is_array($online) ? array_values($online) : [];
        }, []);
    }

    /** Whether the server is reachable and accepts the push secret. */
    public function ping(): bool
    {
        return $this->guard('ping', fn (): bool => $this->deliver([Line::operation('ping')]), false);
    }

    /**
     * Signs a token that authenticates a browser. The page passes it to the client library as `token`.
     *
     * The server is not contacted. Use a lifetime of a few minutes, and let the page fetch a new token when it
     * reconnects.
     *
     * @param int $ttl lifetime in seconds
     * @param list<int|string>|null $conversations the only conversations that the page may subscribe to; null: every
     *     conversation that the server allows
     * @return string|false false if no secret is configured
     */
    public function token(int|string $userId, int $ttl = 300, ?array $conversations = null): string|false
    {
        return $this->guard('token', function () use ($userId, $ttl, $conversations): string|false {
            if ($this->config->tokenSecret === null) {
                $this->log->warning('no token: no secret is configured, set CHATWS_SECRET or CHATWS_SECRET_FILES');

                return false;
            }
            $audience = $this->config->tokenAudience;

            return Token::sign($this->config->tokenSecret, $userId, time(), $ttl, $conversations, $audience);
        }, false);
    }

    /**
     * Sends the lines in the spool. Every other call that sends something does the same.
     *
     * @return int how many lines remain in the spool
     */
    public function flushSpool(): int
    {
        return $this->guard('spool', fn (): int => $this->sender->flush(), 0);
    }

    /** Returns why the last call failed, or null if it succeeded. */
    public function lastError(): ?string
    {
        return $this->log->lastMessage;
    }

    /** Resets the time budget. Call it at the start of each request in a process that serves many requests. */
    public function beginRequest(): void
    {
        $this->sender->renew();
    }

    /** Closes the connection. The next call opens a new one. */
    public function close(): void
    {
        $this->sender->close();
    }

    /** @param list<\Closure(): Line> $factories that make the lines; encoding may fail */
    private function sendAll(string $operation, array $factories): bool
    {
        return $this->guard($operation, function () use ($operation, $factories): bool {
            $lines = [];
            foreach ($factories as $factory) {
                $line = $factory();
                $size = \strlen($line->json);
                if ($size > $this->config->maxLineSize) {
                    $limit = "max_line_size is {$this->config->maxLineSize}";
                    $this->log->warning("{$operation} not sent: its line has {$size} bytes, {$limit}");
                    $this->batchProblem = $this->log->lastMessage;

                    return false;
                }
                $lines[] = $line;
            }
            if ($this->batch === null) {
                return $this->deliver($lines);
            }
            array_push($this->batch, ...$lines);

            return true;
        }, false);
    }

    /** @param list<Line> $lines */
    private function deliver(array $lines): bool
    {
        $ok = true;
        $start = 0;
        $size = 0;
        foreach ($lines as $index => $line) {
            $count = $index - $start;
            if ($count > 0 && ($count >= self::BATCH_LINES || $size + \strlen($line->json) > self::BATCH_BYTES)) {
                $ok = $this->exchange(\array_slice($lines, $start, $count)) && $ok;
                $start = $index;
                $size = 0;
            }
            $size += \strlen($line->json);
        }

        return $lines === [] || ($this->exchange(\array_slice($lines, $start)) && $ok);
    }

    /** @param list<Line> $lines */
    private function exchange(array $lines): bool
    {
        $responses = $this->sender->send($lines);
        foreach (array_keys($lines) as $index) {
            if (($responses[$index]['ok'] ?? false) !== true) {
                return false;
            }
        }

        return true;
    }

    /**
     * Calls a function. An exception is logged and becomes the default.
     *
     * @template T
     * @param callable(): T $function
     * @param T $default
     * @return T
     */
    private function guard(string $operation, callable $function, mixed $default): mixed
    {
        $this->log->lastMessage = null;
        try {
            return $function();
        } catch (\Throwable $error) {
            $this->log->warning("{$operation} not sent: {$error->getMessage()}");
            $this->batchProblem = $this->log->lastMessage;

            return $default;
        }
    }
}
