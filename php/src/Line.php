<?php

declare(strict_types=1);

namespace Chatws;

/**
 * One line for the push port (docs/protocol.md §3), always one that is answered.
 *
 * @internal
 */
final class Line
{
    /** Longer keys are refused by the server. */
    private const MAX_KEY = 128;

    /**
     * @param string $json without the newline
     * @param string $id echoed in the answer; of an event the idempotency key
     * @param string $name the event's or operation's, for logs
     * @param bool $lasting worth sending later, when it cannot be sent now
     */
    public function __construct(
        public readonly string $json,
        public readonly string $id,
        public readonly string $name,
        public readonly bool $lasting,
    ) {
    }

    /**
     * @param array<array-key, mixed> $data the event's data; always an object on the wire
     * @param array<string, mixed>|string|null $to as `to` on the wire; null: the event's default audience
     * @throws \JsonException
     */
    public static function event(
        string $event,
        array $data,
        array|string|null $to = null,
        int|string|null $exceptUserId = null,
        ?string $key = null,
        bool $transient = false,
    ): self {
        $id = $key === null || $key === '' ? bin2hex(random_bytes(16)) : self::key($key);
        $fields = ['event' => $event, 'id' => $id, 'ack' => true];
        if ($to !== null) {
            $fields['to'] = $to;
        }
        if ($exceptUserId !== null) {
            $fields['except_user_id'] = $exceptUserId;
        }
        if ($transient) {
            $fields['transient'] = true;
        }
        $fields['data'] = Json::object($data);

        // Who types now is of no interest later.
        return new self(Json::encode($fields), $id, $event, !$transient && $event !== 'typing');
    }

    /**
     * @param array<string, mixed> $fields
     * @throws \JsonException
     */
    public static function operation(string $op, array $fields = []): self
    {
        $id = bin2hex(random_bytes(8));

        return new self(Json::encode(['op' => $op, 'id' => $id] + $fields), $id, $op, false);
    }

    /** A line from the spool, or null when it is none. */
    public static function parse(string $json): ?self
    {
        $found = str_contains($json, "\n") ? null : json_decode($json);
        if (!$found instanceof \stdClass || !\is_string($found->event ?? null)) {
            return null;
        }
        $id = $found->id ?? null;
        if (!(\is_string($id) || \is_int($id)) || ($found->ack ?? null) !== true) {
            return null;
        }

        return new self($json, (string) $id, $found->event, true);
    }

    private static function key(string $key): string
    {
        // Whatever the application takes for a key: bytes that are no text, or a whole URL.
        return \strlen($key) <= self::MAX_KEY && preg_match('//u', $key) === 1 ? $key : hash('sha256', $key);
    }
}
