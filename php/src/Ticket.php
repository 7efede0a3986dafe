<?php

declare(strict_types=1);

namespace Chatws;

/**
 * A signed ticket for a browser: a JWT (RFC 7519) with HMAC SHA-256 (docs/protocol.md §5).
 *
 * @internal
 */
final class Ticket
{
    /**
     * @param int $now seconds since 1970
     * @param int $ttl seconds that it is good for
     * @param list<int|string>|null $conversations the only ones that may be subscribed to; null: all that the
     *     application allows
     * @throws \JsonException
     */
    public static function sign(
        #[\SensitiveParameter]
        string $secret,
        int|string $userId,
        int $now,
        int $ttl,
        ?array $conversations = null,
        ?string $audience = null,
    ): string {
        $claims = ['sub' => (string) $userId, 'iat' => $now, 'exp' => $now + $ttl];
        if ($audience !== null) {
            $claims['aud'] = $audience;
        }
        if ($conversations !== null) {
            $claims['conversations'] = array_values($conversations);
        }
        $header = Json::encode(['alg' => 'HS256', 'typ' => 'JWT']);
        $signed = self::base64($header) . '.' . self::base64(Json::encode($claims));

        return $signed . '.' . self::base64(hash_hmac('sha256', $signed, $secret, true));
    }

    /** RFC 7515 §2: base64url, without padding. */
    private static function base64(string $bytes): string
    {
        return rtrim(strtr(base64_encode($bytes), '+/', '-_'), '=');
    }
}
