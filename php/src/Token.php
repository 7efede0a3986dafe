<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Signs tokens for browsers: JWTs (RFC 7519) with HMAC SHA-256, see docs/protocol.md §5.
 *
 * @internal
 */
final class Token
{
    /**
     * @param int $now seconds since 1970
     * @param int $ttl lifetime in seconds
     * @param list<int|string>|null $conversations the only conversations that the page may subscribe to; null: every
     *     conversation that the server allows
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

    /** Encodes as base64url without padding (RFC 7515 §2). */
    private static function base64(string $bytes): string
    {
        return rtrim(strtr(base64_encode($bytes), '+/', '-_'), '=');
    }
}
