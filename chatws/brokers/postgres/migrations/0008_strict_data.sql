-- chatws.publish rejects the data that the push API rejects (docs/protocol.md §3).
-- Programs that know migration 4 or a later one can work with it.

-- An id in `data`. The push API accepts 456 and not 4.56e2, which is the same number for jsonb.
CREATE FUNCTION chatws._data_id(p_data json, p_key text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_id json := p_data -> p_key;
BEGIN
    IF json_typeof(v_id) = 'number' AND v_id::text !~ '^-?[0-9]+$' THEN
        PERFORM chatws._refuse('data.' || p_key || ' must be an integer from 0 to 2^53-1');
    END IF;
    RETURN v_id;
END
$$;

-- Reject JSON with half of a surrogate pair as an escape (RFC 8259 §8.2), and JSON with more than 900 levels.
CREATE FUNCTION chatws._check_text(p_data text) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_rest text;
BEGIN
    IF p_data ~ '\\u[dD][89a-fA-F]' THEN
        v_rest := replace(p_data, '\\', '');  -- escaped backslashes
        v_rest := regexp_replace(v_rest, '\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}', '', 'g');
        IF v_rest ~ '\\u[dD][89a-fA-F]' THEN
            PERFORM chatws._refuse('data has half of a surrogate pair');
        END IF;
    END IF;
    -- most data has fewer brackets, and is not looked at closely
    IF length(p_data) - length(translate(p_data, '[{', '')) > 900 THEN
        v_rest := regexp_replace(replace(p_data, '\\', ''), '\\"', '', 'g');
        v_rest := regexp_replace(v_rest, '"[^"]*"|[^][{}]', '', 'g');
        IF EXISTS (
            SELECT FROM (
                SELECT sum(CASE WHEN bracket IN ('[', '{') THEN 1 ELSE -1 END) OVER (ORDER BY number) AS depth
                FROM unnest(string_to_array(v_rest, NULL)) WITH ORDINALITY AS b (bracket, number)
            ) depths
            WHERE depth > 900
        ) THEN
            PERFORM chatws._refuse('data is nested too deeply');
        END IF;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION chatws._publish(
    p_event text, p_data text, p_audience jsonb, p_except text, p_key text, p_transient boolean
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_rule chatws.audiences;
    v_data json;
    v_channels text[];
    v_actor jsonb;
BEGIN
    IF p_event IS NULL OR p_event !~ '^[A-Za-z0-9_.:-]{1,64}$' THEN
        PERFORM chatws._refuse('event must be 1 to 64 characters of A-Z a-z 0-9 _ . : -');
    END IF;
    IF p_event IN ('authenticated', 'subscribed', 'unsubscribed', 'presence', 'error', 'pong',
                   'contact_status', 'groups', 'available', 'connected', 'disconnected', 'reconnect_failed', 'resync',
                   'recovered', 'identity_changed', 'token_failed') THEN
        PERFORM chatws._refuse(p_event || ' is reserved for the server (reserved_event)');
    END IF;
    v_data := p_data;  -- raises an exception if it is not JSON
    IF v_data IS NULL OR json_typeof(v_data) <> 'object' THEN
        PERFORM chatws._refuse('data must be an object');
    END IF;
    IF octet_length(p_data) > 1048576 THEN
        PERFORM chatws._refuse('data is larger than 1 MiB');
    END IF;
    PERFORM chatws._check_text(p_data);
    IF char_length(p_key) NOT BETWEEN 1 AND 128 THEN
        PERFORM chatws._refuse('id must have 1 to 128 characters');
    END IF;
    IF p_except IS NOT NULL THEN
        p_except := chatws._id(to_jsonb(p_except), 'except_user_id');
    END IF;
    SELECT * INTO v_rule FROM chatws.audiences a WHERE a.event = p_event;
    IF p_audience IS NOT NULL AND p_audience <> 'null' THEN
        v_channels := chatws._channels(p_audience);
    ELSIF v_rule.kind = 'agents' THEN
        v_channels := ARRAY['*'];
    ELSIF v_rule.kind = 'everyone' THEN
        v_channels := ARRAY['*', '#contacts'];
    ELSIF v_rule.kind IS NULL OR v_rule.kind = 'none' THEN
        PERFORM chatws._refuse(p_event || ' has no default audience: name one (no_audience)');
    ELSE
        v_actor := chatws._data_id(v_data, 'user_id');
        IF v_rule.not_to_actor AND p_except IS NULL AND v_actor <> 'null' THEN
            p_except := chatws._id(v_actor, 'data.user_id');
        END IF;
        IF v_rule.kind = 'user' THEN
            v_channels := ARRAY['user:' || chatws._id(v_actor, 'data.user_id')];
        ELSE
            v_channels := ARRAY['conversation:' ||
                chatws._id(chatws._data_id(v_data, 'conversation_id'), 'data.conversation_id')];
            v_actor := chatws._data_id(v_data, 'contact_id');
            IF v_rule.not_to_actor AND p_except IS NULL AND v_actor <> 'null' THEN
                v_channels := v_channels || ('!contact:' || chatws._id(v_actor, 'data.contact_id'));
            END IF;
        END IF;
    END IF;
    PERFORM chatws._put(p_event, v_channels, p_except, p_data, p_key,
        coalesce(p_transient, false) OR coalesce(v_rule.transient, false));
END
$$;

-- Grants to roles stay. These functions are called by functions of the owner.
REVOKE EXECUTE ON FUNCTION chatws._data_id(json, text), chatws._check_text(text) FROM PUBLIC;
