<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Verifies webhooks: requests that the server sends to the application, see docs/webhooks.md.
 */
final class Webhook
{
    /** Name of the header, as `$_SERVER` has it. */
    public const SERVER_KEY = 'HTTP_X_CHATWS_SIGNATURE';

    /**
     * Returns whether a request is from the server, and recent.
     *
     * @param string $body the raw body: `file_get_contents('php://input')`, in Laravel `$request->getContent()`. A body
     *     that was decoded and encoded again has other bytes.
     * @param string|null $header the value of `X-Chatws-Signature`
     * @param string|list<string> $secret the secret, or several of which one has to match; an empty one matches nothing
     * @param int $tolerance seconds by which the time in the signature may differ from this machine's
     * @param int|null $now seconds since 1970; by default the present
     */
    public static function verify(
        string $body,
        ?string $header,
        #[\SensitiveParameter]
        string|array $secret,
        int $tolerance = 300,
        ?int $now = null,
    ): bool {
        $time = '';
        $signatures = [];
        foreach (explode(',', $header ?? '') as $part) {
            [$name, $value] = explode('=', trim($part), 2) + [1 => ''];
            if ($name === 't' && $time === '') {
                $time = $value;
            } elseif ($name === 'v1') {
                $signatures[] = $value;
            }
        }
        if (preg_match('/^\d{1,12}$/D', $time) !== 1 || abs(($now ?? time()) - (int) $time) > $tolerance) {
            return false;
        }
        $matches = false;
        foreach ((array) $secret as $one) {
            $expected = hash_hmac('sha256', $time . '.' . $body, $one);
            foreach ($signatures as $signature) {
                $matches = ($one !== '' && hash_equals($expected, $signature)) || $matches;
            }
        }

        return $matches;
    }
}
