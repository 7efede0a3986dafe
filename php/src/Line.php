<?php

declare(strict_types=1);

namespace Chatws;

/**
 * One line for the push API (docs/protocol.md §3). The server sends a response to each of them.
 *
 * @internal
 */
final class Line
{
    /** The server rejects longer keys. */
    private const MAX_KEY_BYTES = 128;

    /**
     * @param string $json without the newline
     * @param string $id echoed in the response; for an event it is the idempotency key
     * @param string $name name of the event or operation, for logs
     * @param bool $isSpoolable whether the line is still useful if it is sent later
     */
    public function __construct(
        public readonly string $json,
        public readonly string $id,
        public readonly string $name,
        public readonly bool $isSpoolable,
    ) {
    }

    /**
     * @param array<array-key, mixed> $data the event's data; always an object on the wire
     * @param array<string, mixed>|string|null $to `to` on the wire; null: the event's default audience
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
        $id = $key === null || $key === '' ? bin2hex(random_bytes(16)) : self::shorten($key);
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

        // `typing` is outdated after a few seconds.
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

    /** Parses a line from the spool. Returns null if it is invalid. */
    public static function parse(string $json): ?self
    {
        $fields = str_contains($json, "\n") ? null : json_decode($json);
        if (!$fields instanceof \stdClass || !\is_string($fields->event ?? null)) {
            return null;
        }
        $id = $fields->id ?? null;
        if (!(\is_string($id) || \is_int($id)) || ($fields->ack ?? null) !== true) {
            return null;
        }

        return new self($json, (string) $id, $fields->event, true);
    }

    /** Returns the key, or its hash if the server would reject the key: too long, or not UTF-8. */
    private static function shorten(string $key): string
    {
        return \strlen($key) <= self::MAX_KEY_BYTES && preg_match('//u', $key) === 1 ? $key : hash('sha256', $key);
    }
}
