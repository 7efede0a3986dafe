<?php

declare(strict_types=1);

/*
 * Loads the classes under Chatws\ for applications without Composer: `require '…/php/autoload.php';`
 */
spl_autoload_register(static function (string $class): void {
    if (str_starts_with($class, 'Chatws\\')) {
        $file = __DIR__ . '/src/' . strtr(substr($class, 7), '\\', '/') . '.php';
        if (is_file($file)) {
            require $file;
        }
    }
});
