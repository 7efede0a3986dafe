<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Encodes JSON on one line, for the wire.
 *
 * @internal
 */
final class Json
{
    private const FLAGS = \JSON_UNESCAPED_UNICODE
        | \JSON_UNESCAPED_SLASHES
        | \JSON_PRESERVE_ZERO_FRACTION // 2.0 stays a float
        | \JSON_INVALID_UTF8_SUBSTITUTE // U+FFFD: one invalid byte must not lose the whole message
        | \JSON_THROW_ON_ERROR;

    /** @throws \JsonException infinite numbers, resources, recursion, more than 512 levels */
    public static function encode(mixed $value): string
    {
        // An old php.ini may set 17 digits (0.1 becomes 0.10000000000000001) or 14 (which loses digits).
        $before = \function_exists('ini_set') ? ini_set('serialize_precision', '-1') : false;
        try {
            return json_encode($value, self::FLAGS);
        } finally {
            if ($before !== false && $before !== '-1') {
                ini_set('serialize_precision', $before);
            }
        }
    }

    /**
     * Makes sure that an array becomes a JSON object, also when it is empty (PHP would write `[]`).
     *
     * @param array<array-key, mixed> $fields
     * @return array<array-key, mixed>|object
     */
    public static function object(array $fields): array|object
    {
        return array_is_list($fields) ? (object) $fields : $fields;
    }
}
