<?php

declare(strict_types=1);

/*
 * The connection `chatws` of config/broadcasting.php. A connection of that name in the application replaces single
 * settings. README.md describes them.
 */
return [
    'driver' => 'chatws',
    'address' => env('CHATWS_PUSH_ADDRESS'),
    'secret' => env('CHATWS_PUSH_SECRET'),
    'token_secret' => env('CHATWS_SECRET'),
    'spool_dir' => storage_path('chatws'),
    // For pages with Laravel Echo or pusher-js. Without these three, pages use chatws's own client library.
    'pusher' => [
        'app_id' => env('CHATWS_PUSHER_APP_ID'),
        'key' => env('CHATWS_PUSHER_KEY'),
        'secret' => env('CHATWS_PUSHER_SECRET'),
        'url' => env('CHATWS_PUSHER_URL', 'http://127.0.0.1:8080'),
    ],
];
